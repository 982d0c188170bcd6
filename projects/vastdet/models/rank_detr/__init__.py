# SPDX-License-Identifier: Apache-2.0
"""Rank-DETR: queries in the order of scores, and scores that tell of boxes (Pu et al., 2023)."""

from vastdet.models.rank_detr.config import add_rank_detr_config
from vastdet.models.rank_detr.rank_detr import RankDETR

__all__ = ["RankDETR", "add_rank_detr_config"]
