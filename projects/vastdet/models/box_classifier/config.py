# SPDX-License-Identifier: Apache-2.0
"""Config keys of the box classifier."""

from detectron2.config import CfgNode


def add_box_classifier_config(cfg: CfgNode) -> None:
    """Add `MODEL.BOX_CLASSIFIER`."""
    node = cfg.MODEL.BOX_CLASSIFIER = CfgNode()
    node.NUM_CLASSES = 80
    # Maps of the backbone; each has a classifier of its own.
    node.IN_FEATURES = ["res4", "res5"]
    # Of the groups of the category tree of the first training set; with 0 no tree is needed.
    node.TREE_LOSS_WEIGHT = 0.0
