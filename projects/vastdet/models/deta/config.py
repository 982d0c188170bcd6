# SPDX-License-Identifier: Apache-2.0
"""Config keys of DETA."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import add_deformable_keys, add_focal_keys, add_weight_keys


def add_deta_config(cfg: CfgNode) -> None:
    """Add `MODEL.DETA`; the defaults are the authors' 5-level model (Ouyang-Zhang et al. 2022)."""
    node = cfg.MODEL.DETA = CfgNode()
    add_deformable_keys(node)
    node.NUM_LEVELS = 5
    node.NUM_QUERIES = 900
    # IoU above which NMS drops the worse of two detections of a class.
    node.NMS_THRESH_TEST = 0.7

    node.PROPOSALS = CfgNode()
    # The best tokens of each level, of which NMS within the level then drops some.
    node.PROPOSALS.NUM_PER_LEVEL = 1000
    node.PROPOSALS.NMS_THRESH = 0.9
    # An anchor is positive from this IoU with a box on.
    node.PROPOSALS.IOU_THRESHOLD = 0.7
    node.PROPOSALS.MAX_POSITIVES = 128

    node.ASSIGNER = CfgNode()
    # A proposal is positive from this IoU with a box on.
    node.ASSIGNER.IOU_THRESHOLD = 0.6
    # Largest share of the queries that are positive.
    node.ASSIGNER.POSITIVE_FRACTION = 0.25
    # Queries of a box, in both stages.
    node.ASSIGNER.MAX_PER_BOX = 4

    add_weight_keys(node, class_weight=1.0)
    add_focal_keys(node)
