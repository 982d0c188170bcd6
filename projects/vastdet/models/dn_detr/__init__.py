# SPDX-License-Identifier: Apache-2.0
"""DN-DETR: DAB-DETR that also learns to restore noised boxes (Li et al., 2022)."""

from vastdet.models.dn_detr.config import add_dn_detr_config
from vastdet.models.dn_detr.dn_detr import DNDETR

__all__ = ["DNDETR", "add_dn_detr_config"]
