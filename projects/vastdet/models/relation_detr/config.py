# SPDX-License-Identifier: Apache-2.0
"""Config keys of Relation-DETR."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import (
    add_contrastive_denoising_keys,
    add_deformable_keys,
    add_loss_and_matcher_keys,
    add_one_to_many_keys,
)


def add_relation_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.RELATION_DETR`; the defaults are the model of Hou et al., ECCV 2024."""
    node = cfg.MODEL.RELATION_DETR = CfgNode()
    add_deformable_keys(node)
    node.NUM_QUERIES = 900
    # Height and width of a padded batch are multiples of it; the border counts as padding.
    node.SIZE_DIVISIBILITY = 32

    add_one_to_many_keys(node)
    add_contrastive_denoising_keys(node)
    add_loss_and_matcher_keys(node)
    # Of the varifocal loss.
    node.LOSS.ALPHA = 0.75
    node.LOSS.GAMMA = 2.0
