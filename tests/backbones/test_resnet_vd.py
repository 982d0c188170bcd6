# SPDX-License-Identifier: Apache-2.0
"""ResNet-vd against transformers, and its start against timm."""

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from tests.models.rt_detr_reference import random_weights
from torch import nn

from vastdet.model_zoo.rt_detr_models import resnet_vd_pairs, transformers_names


def vd_config(cfg: CfgNode, name: str) -> CfgNode:
    cfg.MODEL.BACKBONE.NAME = "build_resnet_vd_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = name
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    return cfg


@pytest.mark.parametrize("depth", [18, 50])
def test_equals_transformers(cfg: CfgNode, depth: int) -> None:
    transformers = pytest.importorskip("transformers")
    width = 1 if depth == 18 else 4
    config = transformers.RTDetrResNetConfig(
        hidden_sizes=[64 * width, 128 * width, 256 * width, 512 * width],
        depths=[2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3],
        layer_type="basic" if depth == 18 else "bottleneck",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    torch.manual_seed(0)
    theirs = transformers.RTDetrResNetBackbone(config).eval()
    random_weights(theirs)
    ours = build_backbone(vd_config(cfg, f"resnet{depth}d"), ShapeSpec(channels=3)).eval()
    prefix = "model.backbone.model."
    state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    weights = {
        pair.detectron2.removeprefix("backbone."): state.pop(pair.source)
        for pair in resnet_vd_pairs(depth, transformers_names())
    }
    assert all(name.endswith("num_batches_tracked") for name in state)
    absent, surplus = ours.load_state_dict(weights, strict=False)
    assert not surplus
    assert all(name.endswith("num_batches_tracked") for name in absent)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(images).feature_maps
        found = ours(images)
    for one, other in zip(found.values(), expected, strict=True):
        gap = float((one - other).abs().max() / other.abs().max())
        print(f"ResNet-{depth}-vd: {gap:.1e} of the largest value")
        # Measured: 6e-7.
        assert gap < 1e-5


def test_starts_as_timm_s_network(cfg: CfgNode) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("resnet18d", features_only=True, out_indices=[4]).eval()
    vd_config(cfg, "resnet18d").MODEL.TIMM.OUT_FEATURES = ["res5"]
    ours = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    absent, surplus = ours.body.load_state_dict(plain.state_dict(), strict=False)
    assert not surplus
    assert {name.rsplit(".", 2)[0] for name in absent} == {"layer1.0.downsample"}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = plain(images)[0], ours(images)["res5"]
    # The norm divides by sqrt(1 + 1e-5).
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_frozen_block_has_a_frozen_shortcut(cfg: CfgNode) -> None:
    vd_config(cfg, "resnet18d").MODEL.BACKBONE.FREEZE_AT = 2
    cfg.MODEL.WEIGHTS = "some.pth"
    first = dict(build_backbone(cfg, ShapeSpec(channels=3)).body.named_modules())["layer1.0"]
    assert not [name for name, p in first.named_parameters() if p.requires_grad]
    assert not isinstance(first.downsample[2], nn.BatchNorm2d)


def test_another_network_than_a_resnet(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="has no stage of residual blocks"):
        build_backbone(vd_config(cfg, "test_convnext"), ShapeSpec(channels=3))
