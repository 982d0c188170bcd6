# SPDX-License-Identifier: Apache-2.0
"""Backbones that Detectron2 lacks, registered with its BACKBONE_REGISTRY."""

from vastdet.backbones.dilated_resnet import build_resnet_dc5_backbone
from vastdet.backbones.fpn import (
    build_resnet_fpn_p6p7_backbone,
    build_retinanet_swin_fpn_backbone,
    build_swin_fpn_backbone,
    build_timm_fpn_backbone,
    build_timm_retinanet_fpn_backbone,
)
from vastdet.backbones.resnet_vd import build_resnet_vd_backbone
from vastdet.backbones.swin import SwinBackbone, build_swin_backbone
from vastdet.backbones.timm_backbone import TimmBackbone, build_timm_backbone

__all__ = [
    "SwinBackbone",
    "TimmBackbone",
    "build_resnet_dc5_backbone",
    "build_resnet_fpn_p6p7_backbone",
    "build_resnet_vd_backbone",
    "build_retinanet_swin_fpn_backbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
]
