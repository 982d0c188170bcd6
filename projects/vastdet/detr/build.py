# SPDX-License-Identifier: Apache-2.0
"""What the configs of the deformable members have in common, as arguments of the parts."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from vastdet.detr.neck import ChannelMapper


def deformable_parts(cfg: CfgNode, node: CfgNode) -> dict[str, Any]:
    """The arguments of `SetDetector` but for transformer and criterion; `node` is the member's."""
    backbone = build_backbone(cfg)
    return {
        "backbone": backbone,
        "neck": ChannelMapper(
            backbone.output_shape(),
            node.IN_FEATURES,
            embed_dim=node.EMBED_DIM,
            num_levels=node.NUM_LEVELS,
        ),
        "num_classes": node.NUM_CLASSES,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def attention_settings(node: CfgNode) -> dict[str, Any]:
    """The arguments of the encoder's and decoder's layers; `node` is the member's."""
    return {
        "embed_dim": node.EMBED_DIM,
        "num_heads": node.NUM_HEADS,
        "num_levels": node.NUM_LEVELS,
        "num_points": node.NUM_POINTS,
        "feedforward_dim": node.FEEDFORWARD_DIM,
        "dropout": node.DROPOUT,
    }
