# SPDX-License-Identifier: Apache-2.0
"""H-Deformable-DETR: one-to-many beside one-to-one matching (Jia et al., 2023)."""

from vastdet.models.h_deformable_detr.config import add_h_deformable_detr_config
from vastdet.models.h_deformable_detr.h_deformable_detr import HDeformableDETR

__all__ = ["HDeformableDETR", "add_h_deformable_detr_config"]
