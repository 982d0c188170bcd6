# SPDX-License-Identifier: Apache-2.0
"""What the configs of one-stage detectors with centre-ness have in common, as arguments and parts.

`cfg` is the whole config and `name` the detector's node in `MODEL`; `one_stage.config_keys` adds
the keys that are read.
"""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from torch import Tensor

from vastdet.one_stage.head import CenternessHead


def common_parts(
    cfg: CfgNode,
    name: str,
    *,
    anchor_scale: float,
    box_activation: Callable[[Tensor], Tensor],
    centerness_on_reg: bool,
) -> dict[str, Any]:
    """The arguments of `CenternessDetector` but for assigner, criterion and score function.

    Args:
        cfg: read with all of its nodes: backbone and pixels are not the detector's.
        name: such as "FCOS".
        anchor_scale: side of the one square about a location, in strides.
        box_activation: see `CenternessHead`.
        centerness_on_reg: see `CenternessHead`.

    Raises:
        ValueError: when IN_FEATURES names a level that the backbone lacks.
    """
    node = cfg.MODEL[name]
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    unknown = [f for f in node.IN_FEATURES if f not in shapes]
    if unknown:
        raise ValueError(
            f"MODEL.{name}.IN_FEATURES names {unknown}, but the backbone returns {list(shapes)}"
        )
    input_shape = [shapes[f] for f in node.IN_FEATURES]
    strides = [shape.stride for shape in input_shape]
    return {
        "backbone": backbone,
        "head": CenternessHead(
            input_shape=input_shape,
            num_classes=node.NUM_CLASSES,
            num_convs=node.NUM_CONVS,
            box_activation=box_activation,
            norm=node.NORM,
            prior_prob=node.PRIOR_PROB,
            centerness_on_reg=centerness_on_reg,
        ),
        "head_in_features": node.IN_FEATURES,
        "anchor_generator": ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(
            sizes=[[anchor_scale * stride] for stride in strides],
            aspect_ratios=[1.0],
            strides=strides,
            offset=node.POINT_OFFSET,
        ),
        "num_classes": node.NUM_CLASSES,
        "test_score_thresh": node.SCORE_THRESH_TEST,
        "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
        "test_nms_thresh": node.NMS_THRESH_TEST,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def criterion_settings(node: CfgNode) -> dict[str, Any]:
    """The arguments of `CenternessCriterion` that all detectors read from their node."""
    return {
        "num_classes": node.NUM_CLASSES,
        "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
        "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
    }
