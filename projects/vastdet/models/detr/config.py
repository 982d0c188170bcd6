# SPDX-License-Identifier: Apache-2.0
"""Config keys of DETR."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import add_dense_keys, add_weight_keys


def add_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.DETR` and `MODEL.PANOPTIC_DETR`.

    The defaults are the ResNet-50 models (Carion et al., ECCV 2020).
    """
    node = cfg.MODEL.DETR = CfgNode()
    # NUM_CLASSES is without "no object", which is one logit more.
    add_dense_keys(node)
    node.DROPOUT = 0.1
    node.NUM_QUERIES = 100

    # Weights of the losses and, alike, of the costs of the matcher.
    add_weight_keys(node, class_weight=1.0)
    # Of a query that answers for no box, in the class loss.
    node.NO_OBJECT_WEIGHT = 0.1
    _add_panoptic_config(cfg)


def _add_panoptic_config(cfg: CfgNode) -> None:
    """Add `MODEL.PANOPTIC_DETR`: the keys above, and those of the masks (section 4.2)."""
    node = cfg.MODEL.PANOPTIC_DETR = cfg.MODEL.DETR.clone()
    # COCO's 80 things, then its 53 kinds of stuff: classes below NUM_THING_CLASSES are things.
    node.NUM_CLASSES = 133
    node.NUM_THING_CLASSES = 80
    # The backbone's maps that refine the masks, low resolution first.
    node.MASK_FEATURES = ["res4", "res3", "res2"]
    # Whether only the mask head learns, on a detector that was trained before.
    node.FREEZE_DETECTOR = False

    node.MASK_WEIGHT = 1.0
    node.DICE_WEIGHT = 1.0
    # Queries of a lower score have no part in the panoptic segmentation, and segments of at most
    # as many pixels go.
    node.SCORE_THRESH_TEST = 0.85
    node.MAX_SMALL_AREA = 4
