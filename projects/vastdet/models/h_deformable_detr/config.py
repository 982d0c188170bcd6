# SPDX-License-Identifier: Apache-2.0
"""Config keys of H-Deformable-DETR."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import (
    add_deformable_keys,
    add_focal_keys,
    add_one_to_many_keys,
    add_weight_keys,
)


def add_h_deformable_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.H_DEFORMABLE_DETR`; the defaults are the paper's (Jia et al., CVPR 2023)."""
    node = cfg.MODEL.H_DEFORMABLE_DETR = CfgNode()
    add_deformable_keys(node)
    # One-to-one queries, the only ones at inference.
    node.NUM_QUERIES = 300

    add_one_to_many_keys(node)

    # Weights of the losses and, alike, of the costs of the matcher.
    add_weight_keys(node, class_weight=2.0)
    add_focal_keys(node)
