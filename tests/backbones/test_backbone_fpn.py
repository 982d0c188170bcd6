# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7


@pytest.fixture
def fpn_cfg(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "test_resnet"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    return cfg


@pytest.mark.parametrize(
    ("backbone", "in_features", "levels", "divisibility"),
    [
        ("build_timm_fpn_backbone", ["res3", "res4", "res5"], "p3 p4 p5 p6", 32),
        ("build_timm_fpn_backbone", ["res2", "res3"], "p2 p3", 8),
        ("build_timm_retinanet_fpn_backbone", ["res3", "res4", "res5"], "p3 p4 p5 p6 p7", 32),
        ("build_timm_retinanet_fpn_backbone", ["res5"], "p5 p6 p7", 32),
    ],
)
@pytest.mark.parametrize("norm", ["", "GN", "BN"])
def test_levels_have_the_shape_that_is_declared(
    fpn_cfg: CfgNode, backbone: str, in_features: list[str], levels: str, divisibility: int,
    norm: str,
) -> None:  # fmt: skip
    fpn_cfg.MODEL.BACKBONE.NAME = backbone
    fpn_cfg.MODEL.FPN.IN_FEATURES = in_features
    fpn_cfg.MODEL.FPN.NORM = norm
    model = build_backbone(fpn_cfg).eval()
    assert model.size_divisibility == divisibility
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 96, 160))
    assert " ".join(maps) == levels
    for level, shape in model.output_shape().items():
        height, width = -(-96 // shape.stride), -(-160 // shape.stride)
        assert maps[level].shape == (1, 32, height, width)
        assert shape.stride == 2 ** int(level[-1])


@pytest.mark.parametrize(("in_feature", "channels"), [("res5", 96), ("p5", 32)])
def test_p6_reads_the_map_that_the_config_names(
    fpn_cfg: CfgNode, in_feature: str, channels: int
) -> None:
    fpn_cfg.MODEL.BACKBONE.NAME = "build_timm_retinanet_fpn_backbone"
    fpn_cfg.MODEL.FPN.P6P7_IN_FEATURE = in_feature
    model = build_backbone(fpn_cfg).eval()
    assert isinstance(model.top_block, LastLevelP6P7)
    assert model.top_block.p6.in_channels == channels
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = {**model.bottom_up(images), **model(images)}
        torch.testing.assert_close(maps["p6"], model.top_block.p6(maps[in_feature]))


def test_detectron2s_resnet_takes_p6_from_p5(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_p6p7_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.P6P7_IN_FEATURE = "p5"
    model = build_backbone(cfg)
    assert list(model.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    assert model.top_block.p6.in_channels == 256


@pytest.mark.parametrize(
    ("in_features", "message"),
    [
        (["res3", "res5"], "each of twice the stride of the one before"),
        (["res3", "p4"], r"IN_FEATURES is \['res3', 'p4'\]"),
        ([], "expected maps of the network"),
    ],
)
def test_wrong_maps_say_what_is_expected(
    fpn_cfg: CfgNode, in_features: list[str], message: str
) -> None:
    fpn_cfg.MODEL.FPN.IN_FEATURES = in_features
    with pytest.raises(ValueError, match=message):
        build_backbone(fpn_cfg)


@pytest.mark.parametrize(
    ("in_features", "p6p7"), [(["res3", "res4"], "res5"), (["res4", "res5"], "res4")]
)
def test_p6_without_its_map_is_refused(fpn_cfg: CfgNode, in_features: list[str], p6p7: str) -> None:
    fpn_cfg.MODEL.BACKBONE.NAME = "build_timm_retinanet_fpn_backbone"
    fpn_cfg.MODEL.FPN.IN_FEATURES = in_features
    fpn_cfg.MODEL.FPN.P6P7_IN_FEATURE = p6p7
    with pytest.raises(ValueError, match="P6 and P7 need res5"):
        build_backbone(fpn_cfg)
