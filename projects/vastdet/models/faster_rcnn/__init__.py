# SPDX-License-Identifier: Apache-2.0
"""Fast and Faster R-CNN are Detectron2's; what they lack for vast vocabularies is here."""

import vastdet.models.faster_rcnn.observation  # noqa: F401  (registers how ROI heads are observed)
from vastdet.layers.prior_roi_heads import PriorCascadeROIHeads, PriorROIHeads
from vastdet.models.faster_rcnn.config import add_faster_rcnn_config

__all__ = ["PriorCascadeROIHeads", "PriorROIHeads", "add_faster_rcnn_config"]
