# SPDX-License-Identifier: Apache-2.0
"""DAB-DETR: queries are boxes that each decoder layer corrects (Liu et al., 2022)."""

from vastdet.models.dab_detr.config import add_dab_detr_config
from vastdet.models.dab_detr.dab_detr import DABDETR

__all__ = ["DABDETR", "add_dab_detr_config"]
