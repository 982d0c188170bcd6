# SPDX-License-Identifier: Apache-2.0
"""DAB-Deformable-DETR (Liu et al., 2022) and, with denoising, DN-Deformable-DETR (Li et al.)."""

from vastdet.models.dab_deformable_detr.config import add_dab_deformable_detr_config
from vastdet.models.dab_deformable_detr.dab_deformable_detr import DABDeformableDETR

__all__ = ["DABDeformableDETR", "add_dab_deformable_detr_config"]
