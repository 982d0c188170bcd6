# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from vastdet.backbones import TimmBackbone

ALL = ["res2", "res3", "res4", "res5"]


def make(name: str = "test_resnet", **options: Any) -> TimmBackbone:
    return TimmBackbone(name, **{"out_features": ALL, **options})


@pytest.mark.parametrize(
    "name", ["resnet10t", "test_convnext", "mobilenetv3_small_050", "test_efficientnet"]
)
@pytest.mark.parametrize("size", [(64, 96), (61, 83)], ids=["even", "odd"])
def test_maps_have_the_shape_that_is_declared(name: str, size: tuple[int, int]) -> None:
    backbone = make(name).eval()
    height, width = (-(-s // 32) * 32 for s in size)
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, height, width))
    assert list(maps) == ALL
    for feature, shape in backbone.output_shape().items():
        assert maps[feature].shape == (
            2, shape.channels, height // shape.stride, width // shape.stride,
        )  # fmt: skip
        assert shape.stride == 2 ** int(feature[-1])
    assert backbone.size_divisibility == 32


def test_an_odd_size_works_without_padding() -> None:
    with torch.no_grad():
        maps = make().eval()(torch.randn(1, 3, 61, 83))
    assert maps["res5"].shape[2:] == (2, 3)


def test_maps_equal_timms_own() -> None:
    torch.manual_seed(0)
    backbone = make().eval()
    reference = timm.create_model("test_resnet", features_only=True).eval()
    reference.load_state_dict(backbone.body.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = backbone(images), reference(images)
    for feature, expected in zip(ALL, theirs[1:], strict=True):
        # Convolutions add up in another order where channels lie together; measured: 2.4e-6.
        torch.testing.assert_close(ours[feature], expected, rtol=0, atol=1e-5)


def test_channels_last_maps_are_turned() -> None:
    backbone = make("swinv2_cr_tiny_224", out_features=["res3"]).eval()
    nhwc = make("swin_s3_tiny_224", out_features=["res2", "res3"]).eval()
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 224, 224))["res3"].shape == (1, 192, 28, 28)
        assert nhwc(torch.zeros(1, 3, 224, 224))["res3"].shape == (1, 192, 28, 28)


def test_a_plain_transformer_has_one_map() -> None:
    backbone = make("test_vit", out_features=["res4"]).eval()
    assert backbone.output_shape() == {"res4": ShapeSpec(channels=64, stride=16)}
    assert backbone.body.feature_info.module_name() == ["blocks.5"], "the deepest"


def test_stages_that_are_not_named_are_not_built() -> None:
    sizes = [sum(p.numel() for p in make(out_features=ALL[:n]).parameters()) for n in (1, 2, 3, 4)]
    assert sizes == sorted(set(sizes))
    assert make(out_features=["res4", "res2"]).size_divisibility == 16


def test_names_may_come_in_any_order() -> None:
    maps = make(out_features=["res4", "res2"])(torch.zeros(2, 3, 64, 64))
    assert {n: m.shape[-1] for n, m in maps.items()} == {"res2": 16, "res4": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet10"}, "'resnet10' is not a timm model; did you mean .*resnet10t"),
        ({"name": "qqqqqq"}, "'qqqqqq' is not a timm model$"),
        ({"name": "test_vit"}, r"the timm model 'test_vit' has the maps \['res4'\]"),
        ({"out_features": ["res3", "p4"]}, r"OUT_FEATURES is \['res3', 'p4'\]"),
        ({"out_features": []}, "name at least one"),
        ({"norm": "LN"}, "NORM is 'LN'; expected one of"),
        ({"name": "test_convnext", "norm": "GN"}, "'test_convnext' has no batch norm"),
    ],
)
def test_a_wrong_option_says_what_is_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_strides_that_do_not_halve_have_no_name() -> None:
    with pytest.raises(ValueError, match=r"'crossvit_tiny_240' has the maps \[\]"):
        make("crossvit_tiny_240")


@pytest.mark.parametrize("norm", ["FrozenBN", "SyncBN", "GN"])
def test_norms_replace_every_batch_norm(norm: str) -> None:
    backbone = make("resnet10t", norm=norm)
    names = {type(m).__name__ for m in backbone.modules() if "Norm" in type(m).__name__}
    assert "BatchNorm2d" not in names
    expected = {"FrozenBN": "FrozenBatchNorm2d", "SyncBN": "SyncBatchNorm", "GN": "GroupNorm"}
    assert expected[norm] in names
    with torch.no_grad():
        maps = backbone.eval()(torch.randn(1, 3, 64, 64))
    assert all(m.isfinite().all() for m in maps.values())


def test_group_norm_keeps_a_fused_activation() -> None:
    model = make("darknet53", norm="GN", out_features=["res3"])
    kinds = [type(m).__name__ for m in model.modules()]
    assert kinds.count("LeakyReLU") == kinds.count("GroupNorm") > 10


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen", "trained"),
    [
        ("resnet10t", 0, "", "conv1"),
        ("resnet10t", 1, "conv1", "layer1"),
        ("resnet10t", 2, "layer1", "layer2"),
        ("resnet10t", 5, "layer4", None),
        ("test_convnext", 1, "stem_0", "stages_0"),
        ("test_convnext", 2, "stages_0", "stages_1"),
        ("mobilenetv3_small_050", 2, "blocks.0", "blocks.1"),
    ],
)
def test_freezing_stops_at_a_stage(
    name: str, freeze_at: int, frozen: str, trained: str | None
) -> None:
    backbone = make(name, freeze_at=freeze_at)
    needs_grad = {n.removeprefix("body."): p.requires_grad for n, p in backbone.named_parameters()}
    if frozen:
        assert not any(v for n, v in needs_grad.items() if n.startswith(frozen))
    if trained:
        assert all(v for n, v in needs_grad.items() if n.startswith(trained))
    else:
        assert not any(needs_grad.values())
    live = {
        n.removeprefix("body.")
        for n, m in backbone.named_modules()
        if isinstance(m, nn.BatchNorm2d)
    }
    assert not frozen or not any(n.startswith(frozen) for n in live), (
        "statistics must be frozen too"
    )


def test_freezing_random_weights_is_refused(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.WEIGHTS = ""
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 2, "Detectron2's default"
    with pytest.raises(ValueError, match="FREEZE_AT is 2, which would freeze random weights"):
        build_backbone(cfg)


def test_freezing_an_unusual_network_is_refused() -> None:
    with pytest.raises(ValueError, match="FREEZE_AT 2 is not supported"):
        make("hrnet_w18_small", freeze_at=2)


def test_the_config_reaches_timm(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "test_convnext"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res4"]
    cfg.MODEL.TIMM.DROP_PATH = 0.2
    cfg.MODEL.PIXEL_MEAN = [0.5]
    backbone = build_backbone(cfg)
    assert list(backbone.output_shape()) == ["res4"]
    assert backbone(torch.zeros(1, 1, 32, 32))["res4"].shape[2:] == (2, 2)
    assert any(getattr(m, "drop_prob", 0) > 0 for m in backbone.modules())
