# SPDX-License-Identifier: Apache-2.0
"""Deformable DETR: attention to a few points on several levels (Zhu et al., 2021)."""

from vastdet.models.deformable_detr.config import add_deformable_detr_config
from vastdet.models.deformable_detr.deformable_detr import DeformableDETR

__all__ = ["DeformableDETR", "add_deformable_detr_config"]
