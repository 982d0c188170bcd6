# SPDX-License-Identifier: Apache-2.0
"""Config keys of DETA."""

from detectron2.config import CfgNode


def add_deta_config(cfg: CfgNode) -> None:
    """Add `MODEL.DETA`; the defaults are the authors' 5-level model (Ouyang-Zhang et al. 2022)."""
    node = cfg.MODEL.DETA = CfgNode()
    node.NUM_CLASSES = 80
    # Maps of the backbone, high resolution first, and levels of the transformer: the further
    # ones are made by convolutions of stride 2.
    node.IN_FEATURES = ["res3", "res4", "res5"]
    node.NUM_LEVELS = 5

    node.EMBED_DIM = 256
    node.NUM_HEADS = 8
    node.FEEDFORWARD_DIM = 2048
    node.NUM_ENCODER_LAYERS = 6
    node.NUM_DECODER_LAYERS = 6
    # Sampling points of each head on each level.
    node.NUM_POINTS = 4
    node.DROPOUT = 0.0
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

    node.CLASS_WEIGHT = 1.0
    node.BBOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    node.FOCAL_ALPHA = 0.25
    node.FOCAL_GAMMA = 2.0
