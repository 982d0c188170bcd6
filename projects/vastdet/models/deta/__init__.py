# SPDX-License-Identifier: Apache-2.0
"""DETA: two-stage Deformable DETR with several queries for a box, and NMS (Ouyang-Zhang, 2022)."""

from vastdet.models.deta.config import add_deta_config
from vastdet.models.deta.deta import DETA

__all__ = ["DETA", "add_deta_config"]
