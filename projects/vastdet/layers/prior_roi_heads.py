# SPDX-License-Identifier: Apache-2.0
"""ROI heads whose sigmoids start at a small probability.

Detectron2 starts every class at 0.5. The loss is a sum over classes: with 1,000 of them it starts
at 670, with 13,204 in the thousands, and its gradient is that of classes that are absent.
"""

import math
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import nn


def start_at_prior(predictors: Iterable[FastRCNNOutputLayers], cfg: CfgNode) -> None:
    """Set the biases of the classifiers such that each class has ROI_BOX_HEAD.PRIOR_PROB.

    As the focal loss starts (Lin et al. 2017, section 4.1). Softmaxes stay as they are.

    Raises:
        ValueError: the probability does not lie between 0 and 1.
    """
    prior = cfg.MODEL.ROI_BOX_HEAD.PRIOR_PROB
    if not 0 < prior < 1:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.PRIOR_PROB is {prior}; expected a probability between 0 and 1"
        )
    if cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE:
        for predictor in predictors:
            nn.init.constant_(predictor.cls_score.bias, -math.log((1 - prior) / prior))


@ROI_HEADS_REGISTRY.register()
class PriorROIHeads(StandardROIHeads):
    """Detectron2's `StandardROIHeads`; sigmoids start at MODEL.ROI_BOX_HEAD.PRIOR_PROB."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        start_at_prior([parts["box_predictor"]], cfg)
        return parts


@ROI_HEADS_REGISTRY.register()
class PriorCascadeROIHeads(CascadeROIHeads):
    """Detectron2's `CascadeROIHeads`; sigmoids start at MODEL.ROI_BOX_HEAD.PRIOR_PROB."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        start_at_prior(parts["box_predictors"], cfg)
        return parts
