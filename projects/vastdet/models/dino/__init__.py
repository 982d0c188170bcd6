# SPDX-License-Identifier: Apache-2.0
"""DINO: contrastive denoising, mixed query selection, look forward twice (Zhang et al., 2023)."""

from vastdet.models.dino.config import add_dino_config
from vastdet.models.dino.dino import DINO

__all__ = ["DINO", "add_dino_config"]
