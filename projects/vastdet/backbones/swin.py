# SPDX-License-Identifier: Apache-2.0
"""Swin transformer (Liu et al., ICCV 2021, arXiv:2103.14030) of Detectron2's parts.

Detectron2's own `SwinTransformer` is no registered backbone: it has no config, its
`size_divisibility` raises, its frozen stages wake up in `train()`, and it cannot be built on the
meta device. This one has the same layers, names and outputs without that.

B images, C channels, H x W a map, S the stride of a map.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.swin import BasicLayer, PatchEmbed, PatchMerging, WindowAttention
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from vastdet.backbones.freezing import check_frozen_weights


class SwinSize(NamedTuple):
    """Width of the first stage; blocks and heads of each stage."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]


# Section 3.3 of the paper: heads have 32 channels.
SIZES = {
    "T": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
# Side of a patch: the stride of the first map.
PATCH_SIZE = 4


class SwinBackbone(Backbone):
    """Swin with a norm on each map `res2`, `res3`, ... that is used; resN has stride 2^N.

    Images of any size are taken: they are padded to whole patches, and maps, after the first norm
    of a block, to whole windows and to even sides, with zeros on the right and at the bottom that
    take part in attention. Every second block shifts its windows, even where one covers the map.
    """

    @configurable
    def __init__(
        self,
        size: SwinSize,
        *,
        window_size: int,
        out_features: Sequence[str],
        in_channels: int = 3,
        drop_path_rate: float = 0.2,
        freeze_at: int = 0,
    ) -> None:
        """Build the stages up to the deepest map named.

        Args:
            size: one of `SIZES` or another; its stages are named res2 and up.
            window_size: tokens on the side of a window.
            out_features: names of the maps to return, such as `["res3", "res4", "res5"]`.
            in_channels: channels of the input image.
            drop_path_rate: stochastic depth rate of the deepest block of `size`, in [0, 1); rates
                rise linearly from 0.
            freeze_at: freeze the patches (1) and the stages up to res`freeze_at` (0: nothing).

        Raises:
            ValueError: an unknown map, a rate or `freeze_at` out of range, or sizes that do not
                fit each other.
        """
        super().__init__()
        _check_size(size, window_size)
        names = [f"res{i + 2}" for i in range(len(size.depths))]
        unknown = [f for f in out_features if f not in names]
        if unknown or not out_features:
            raise ValueError(
                f"MODEL.SWIN.OUT_FEATURES is {list(out_features)}, but this Swin has the maps "
                f"{names}; name at least one of these and no others"
            )
        if not 0 <= drop_path_rate < 1:
            raise ValueError(
                f"MODEL.SWIN.DROP_PATH_RATE is {drop_path_rate}; expected one in [0, 1)"
            )
        if not 0 <= freeze_at <= len(names) + 1:
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; expected 0 (nothing) to "
                f"{len(names) + 1}, which freezes the patches and all stages of this Swin"
            )
        self._freeze_at = freeze_at
        indices = sorted({names.index(f) for f in out_features})
        self._out_features = [names[i] for i in indices]
        channels = [size.embed_dim * 2**i for i in range(len(names))]
        self._out_feature_channels = {names[i]: channels[i] for i in indices}
        self._out_feature_strides = {names[i]: PATCH_SIZE * 2**i for i in indices}
        self.patch_embed = PatchEmbed(
            patch_size=PATCH_SIZE,
            in_chans=in_channels,
            embed_dim=size.embed_dim,
            norm_layer=nn.LayerNorm,
        )
        self.layers = _stages(size, indices[-1] + 1, window_size)
        _set_drop_path(self.layers, drop_path_rate, sum(size.depths))
        for i in indices:
            self.add_module(f"norm{i}", nn.LayerNorm(channels[i]))
        self.apply(_initialize)
        for module in self._frozen_modules():
            module.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read `MODEL.SWIN` and `MODEL.BACKBONE.FREEZE_AT`."""
        node = cfg.MODEL.SWIN
        check_frozen_weights(cfg)
        return {
            "size": size_of(node),
            "window_size": node.WINDOW_SIZE,
            "out_features": node.OUT_FEATURES,
            "in_channels": input_shape.channels,
            "drop_path_rate": node.DROP_PATH_RATE,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, C, H, W) to `{name: (B, C_name, H / S, W / S)}`, large maps first.

        Sides are rounded up at each halving.
        """
        x = self.patch_embed(images)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        maps = {}
        for i, layer in enumerate(self.layers):
            tokens, h, w, x, height, width = layer(x, height, width)
            if f"res{i + 2}" in self._out_features:
                tokens = getattr(self, f"norm{i}")(tokens)
                # (B, H * W, C) -> (B, C, H, W)
                maps[f"res{i + 2}"] = tokens.transpose(1, 2).unflatten(2, (h, w)).contiguous()
        return maps

    def train(self, mode: bool = True) -> "SwinBackbone":
        """As in torch, but frozen stages stay in evaluation mode and drop no path."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self._freeze_at == 0:
            return []
        return [self.patch_embed, *self.layers[: self._freeze_at - 1]]


def size_of(node: CfgNode) -> SwinSize:
    """The `SwinSize` of a `MODEL.SWIN` node: SIZE, with what EMBED_DIM, DEPTHS, NUM_HEADS replace.

    Raises:
        ValueError: an unknown SIZE.
    """
    if node.SIZE not in SIZES:
        raise ValueError(f"MODEL.SWIN.SIZE is {node.SIZE!r}; expected one of {list(SIZES)}")
    preset = SIZES[node.SIZE]
    return SwinSize(
        node.EMBED_DIM or preset.embed_dim,
        tuple(node.DEPTHS) or preset.depths,
        tuple(node.NUM_HEADS) or preset.num_heads,
    )


def _check_size(size: SwinSize, window_size: int) -> None:
    widths = [size.embed_dim * 2**i for i in range(len(size.num_heads))]
    if (
        len(size.depths) != len(size.num_heads)
        or min(size.embed_dim, window_size, *size.depths, *size.num_heads) < 1
        or any(width % heads for width, heads in zip(widths, size.num_heads, strict=True))
    ):
        raise ValueError(
            f"MODEL.SWIN has EMBED_DIM {size.embed_dim}, DEPTHS {list(size.depths)}, NUM_HEADS "
            f"{list(size.num_heads)}, WINDOW_SIZE {window_size}; expected positive numbers, as "
            "many depths as numbers of heads, and heads that divide the width EMBED_DIM * 2^i of "
            "their stage"
        )


def _stages(size: SwinSize, num_stages: int, window_size: int) -> nn.ModuleList:
    """The first stages, each but the last with a patch merging at its end."""
    return nn.ModuleList(
        BasicLayer(
            dim=size.embed_dim * 2**i,
            depth=size.depths[i],
            num_heads=size.num_heads[i],
            window_size=window_size,
            downsample=PatchMerging if i < num_stages - 1 else None,
        )
        for i in range(num_stages)
    )


def _set_drop_path(layers: nn.ModuleList, rate: float, num_blocks: int) -> None:
    """Let block i of `num_blocks` drop its branches at i / (num_blocks - 1) of the rate."""
    blocks = [block for layer in layers for block in layer.blocks]
    for i, block in enumerate(blocks):
        if rate * i > 0:
            block.drop_path = StochasticDepth(rate * i / (num_blocks - 1), "row")


def _initialize(module: nn.Module) -> None:
    """Weights as in the authors' code; tables of biases are initialised by Detectron2."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        # It follows from the window: no part of the weights.
        index = module.relative_position_index
        module.register_buffer("relative_position_index", index, persistent=False)


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:
    """Build the Swin of `MODEL.SWIN` with the maps that OUT_FEATURES names."""
    return SwinBackbone(cfg, input_shape)
