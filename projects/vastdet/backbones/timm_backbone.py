# SPDX-License-Identifier: Apache-2.0
"""Any timm model with feature maps as a Detectron2 backbone.

B images, C channels, H x W the padded input, S the stride of a map.
"""

import difflib
import math
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from vastdet.backbones.freezing import check_frozen_weights

NORMS = ("", "FrozenBN", "SyncBN", "GN")


class TimmBackbone(Backbone):
    """A timm network cut into the maps `res1`, `res2`, ...; resN has stride 2^N.

    Where a network has several maps of one stride, resN is the deepest of them, so a plain vision
    transformer of patch size 16 has `res4` alone.
    """

    @configurable
    def __init__(
        self,
        name: str,
        *,
        out_features: list[str],
        in_channels: int = 3,
        pretrained: bool = False,
        norm: str = "",
        drop_path: float = 0.0,
        freeze_at: int = 0,
    ) -> None:
        """Build the network.

        Args:
            name: a name of `timm.list_models()`, optionally with a weights tag.
            out_features: names of the maps to return, such as `["res3", "res4", "res5"]`.
            in_channels: channels of the input image.
            pretrained: let timm load its weights for `name`.
            norm: one of `NORMS`; all but "" replace every batch norm of the network.
            drop_path: stochastic depth rate of the deepest block, in [0, 1).
            freeze_at: freeze all that leads to the map of stride 2^freeze_at (0: nothing, 1: stem,
                2: stem and res2, as in Detectron2); frozen batch norms use their statistics.

        Raises:
            ValueError: for an unknown name, map or norm, or a norm that the network cannot take.
        """
        super().__init__()
        index_of = _map_indices(name, in_channels)
        unknown = [f for f in out_features if f not in index_of]
        if unknown or not out_features:
            raise ValueError(
                f"MODEL.TIMM.OUT_FEATURES is {list(out_features)}, but the timm model {name!r} has "
                f"the maps {list(index_of)}; name at least one of these and no others"
            )
        self._out_features = sorted(out_features, key=lambda f: index_of[f])
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        self.body = _create(
            name,
            in_chans=in_channels,
            pretrained=pretrained,
            out_indices=[index_of[f] for f in self._out_features],
            **options,
        )
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        info = self.body.feature_info
        shapes = zip(self._out_features, info.channels(), info.reduction(), strict=True)
        self._shapes = {f: ShapeSpec(channels=c, stride=s) for f, c, s in shapes}
        self.body = _replace_batch_norms(self.body, norm, name)
        if freeze_at > 0:
            self._freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read `MODEL.TIMM` and `MODEL.BACKBONE.FREEZE_AT`."""
        node = cfg.MODEL.TIMM
        check_frozen_weights(
            cfg, pretrained_key="MODEL.TIMM.PRETRAINED", pretrained=node.PRETRAINED
        )
        return {
            "name": node.NAME,
            "out_features": node.OUT_FEATURES,
            "in_channels": input_shape.channels,
            "pretrained": node.PRETRAINED,
            "norm": node.NORM,
            "drop_path": node.DROP_PATH,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, C, H, W) to `{name: (B, C_name, H / S, W / S)}`, large maps first."""
        # oneDNN, cuDNN and norms are faster on channels that lie together.
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return dict(zip(self._out_features, maps, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return dict(self._shapes)

    @property
    def size_divisibility(self) -> int:
        """The largest stride, so that no row or column of the image is lost in a strided layer."""
        return max(shape.stride for shape in self._shapes.values())

    def _freeze(self, freeze_at: int) -> None:
        """Freeze the modules up to the map of stride 2^freeze_at, in order of registration."""
        info = self.body.feature_info.info
        names = [name for name, _ in self.body.named_modules()]
        frozen = [f["module"] for f in info if f["reduction"] <= 2**freeze_at]
        target = (frozen[-1] if frozen else info[0]["module"]).replace(".", "_")
        inside = [i for i, n in enumerate(names) if _is_within(n.replace(".", "_"), target)]
        if not inside:
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT {freeze_at} is not supported for this timm model; use 0"
            )
        end = inside[-1] + 1 if frozen else inside[0]
        for name in names[1:end]:
            module = self.body.get_submodule(name)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, nn.BatchNorm2d):
                self.body.set_submodule(name, _timm_layers().freeze_batch_norm_2d(module))


def _timm_layers() -> Any:
    # timm takes seconds to import: only those who build one of its models pay for it.
    import timm.layers

    return timm.layers


def _is_within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + "_")


def _create(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, features_only=True, **options)


def _map_indices(name: str, in_channels: int) -> dict[str, int]:
    """Index in timm of each map of a model, by its name here, shallow to deep."""
    import timm
    import torch

    base_name = name.split(".")[0]
    if not timm.is_model(base_name):
        near = difflib.get_close_matches(base_name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"MODEL.TIMM.NAME {name!r} is not a timm model{hint}")
    with torch.device("meta"):
        info = _create(name, in_chans=in_channels, pretrained=False).feature_info
    pairs = zip(info.reduction(), info.out_indices, strict=True)
    # A pyramid halves from map to map: strides such as 7 or 12 have no name.
    return {f"res{int(math.log2(s))}": i for s, i in pairs if math.log2(s).is_integer()}


def _replace_batch_norms(body: nn.Module, norm: str, name: str) -> nn.Module:
    """Give `body` another norm; an activation that timm fused into a batch norm is kept."""
    if norm not in NORMS:
        raise ValueError(f"MODEL.TIMM.NORM is {norm!r}; expected one of {list(NORMS)}")
    if not norm:
        return body
    batch_norms = [(n, m) for n, m in body.named_modules() if isinstance(m, nn.BatchNorm2d)]
    if not batch_norms:
        raise ValueError(
            f"MODEL.TIMM.NORM is {norm!r}, but {name!r} has no batch norm; leave it ''"
        )
    if norm == "FrozenBN":
        return _timm_layers().freeze_batch_norm_2d(body)
    if norm == "SyncBN":
        return _timm_layers().convert_sync_batchnorm(body)
    for path, module in batch_norms:
        channels = module.num_features
        new: nn.Module = nn.GroupNorm(math.gcd(32, channels), channels)
        if hasattr(module, "act"):
            new = nn.Sequential(new, module.drop, module.act)
        body.set_submodule(path, new)
    return body


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the timm model of `MODEL.TIMM` with the maps that OUT_FEATURES names."""
    return TimmBackbone(cfg, input_shape)
