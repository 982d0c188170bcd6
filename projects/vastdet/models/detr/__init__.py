# SPDX-License-Identifier: Apache-2.0
"""DETR: detection as set prediction with a transformer (Carion et al., 2020)."""

from vastdet.models.detr.config import add_detr_config
from vastdet.models.detr.detr import DETR
from vastdet.models.detr.panoptic import PanopticDETR

__all__ = ["DETR", "PanopticDETR", "add_detr_config"]
