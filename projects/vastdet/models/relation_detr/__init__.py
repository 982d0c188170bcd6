# SPDX-License-Identifier: Apache-2.0
"""Relation-DETR: position relations of boxes as a bias of attention (Hou et al., ECCV 2024)."""

from vastdet.models.relation_detr.config import add_relation_detr_config
from vastdet.models.relation_detr.relation_detr import RelationDETR

__all__ = ["RelationDETR", "add_relation_detr_config"]
