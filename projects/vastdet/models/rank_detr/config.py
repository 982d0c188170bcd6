# SPDX-License-Identifier: Apache-2.0
"""Config keys of Rank-DETR."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import (
    add_deformable_keys,
    add_focal_settings,
    add_one_to_many_keys,
    add_weight_keys,
)


def add_rank_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.RANK_DETR`; the defaults are the paper's (Pu et al., NeurIPS 2023)."""
    node = cfg.MODEL.RANK_DETR = CfgNode()
    add_deformable_keys(node)
    # One-to-one queries, the only ones at inference.
    node.NUM_QUERIES = 300

    add_one_to_many_keys(node)

    # From this iteration on (three quarters of the training) the matcher's cost is minus the class
    # probability times this power of the IoU.
    node.HIGH_ORDER_MATCHING = CfgNode()
    node.HIGH_ORDER_MATCHING.START_ITER = 67500
    node.HIGH_ORDER_MATCHING.IOU_POWER = 4.0

    # Weights of the losses and, alike, of the costs of the matcher before.
    add_weight_keys(node, class_weight=2.0)
    add_focal_settings(node)
