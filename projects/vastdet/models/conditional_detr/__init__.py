# SPDX-License-Identifier: Apache-2.0
"""Conditional DETR: cross-attention that compares contents and places apart (Meng et al., 2021)."""

from vastdet.models.conditional_detr.conditional_detr import ConditionalDETR
from vastdet.models.conditional_detr.config import add_conditional_detr_config

__all__ = ["ConditionalDETR", "add_conditional_detr_config"]
