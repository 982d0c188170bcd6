# SPDX-License-Identifier: Apache-2.0
"""Detectron2's feature pyramid (FPN, Lin et al. 2017) over a timm model, a Swin or a ResNet."""

from itertools import pairwise

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from vastdet.backbones.swin import build_swin_backbone
from vastdet.backbones.timm_backbone import build_timm_backbone


def _build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None) -> FPN:
    shapes = bottom_up.output_shape()
    in_features = cfg.MODEL.FPN.IN_FEATURES
    missing = [f for f in in_features if f not in shapes]
    strides = [shapes[f].stride for f in in_features if f in shapes]
    doubling = all(b == 2 * a for a, b in pairwise(strides))
    if missing or not strides or not doubling:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {list(in_features)}; expected maps of the network "
            f"below, which returns {list(shapes)}, each of twice the stride of the one before. "
            "Change IN_FEATURES, or the OUT_FEATURES of the network"
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _p6(cfg: CfgNode) -> LastLevelMaxPool | None:
    """P6 is P5 subsampled; there is none without P5."""
    return LastLevelMaxPool() if "res5" in cfg.MODEL.FPN.IN_FEATURES else None


def _p6p7(cfg: CfgNode, bottom_up: Backbone) -> LastLevelP6P7:
    """The two strided convolutions that make P6 and P7 from C5 (RetinaNet) or P5 (FCOS)."""
    in_feature, out_channels = cfg.MODEL.FPN.P6P7_IN_FEATURE, cfg.MODEL.FPN.OUT_CHANNELS
    choices = {"p5": out_channels}
    if "res5" in bottom_up.output_shape():
        choices["res5"] = bottom_up.output_shape()["res5"].channels
    if in_feature not in choices or "res5" not in cfg.MODEL.FPN.IN_FEATURES:
        raise ValueError(
            f"P6 and P7 need res5 in MODEL.FPN.IN_FEATURES ({list(cfg.MODEL.FPN.IN_FEATURES)}) and "
            f"MODEL.FPN.P6P7_IN_FEATURE to be 'res5' or 'p5', got {in_feature!r}"
        )
    return LastLevelP6P7(choices[in_feature], out_channels, in_feature)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a pyramid over a timm model: one level a map of `MODEL.FPN.IN_FEATURES`.

    With res5 among them there is also p6, P5 subsampled, which has no weights (as in Detectron2's
    `build_resnet_fpn_backbone`). Small images need no more than p3 to p5.
    """
    return _build_fpn(cfg, build_timm_backbone(cfg, input_shape), _p6(cfg))


@BACKBONE_REGISTRY.register()
def build_timm_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a pyramid over a timm model with P6 and P7 by strided convolutions."""
    bottom_up = build_timm_backbone(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, _p6p7(cfg, bottom_up))


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a pyramid over a Swin, as `build_timm_fpn_backbone` does over a timm model."""
    return _build_fpn(cfg, build_swin_backbone(cfg, input_shape), _p6(cfg))


@BACKBONE_REGISTRY.register()
def build_retinanet_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a pyramid over a Swin with P6 and P7 by strided convolutions."""
    bottom_up = build_swin_backbone(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, _p6p7(cfg, bottom_up))


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a pyramid over Detectron2's ResNet with P6 and P7 from `MODEL.FPN.P6P7_IN_FEATURE`.

    Detectron2's `build_retinanet_resnet_fpn_backbone` always takes res5; FCOS takes p5.
    """
    bottom_up = build_resnet_backbone(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, _p6p7(cfg, bottom_up))
