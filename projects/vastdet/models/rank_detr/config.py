# SPDX-License-Identifier: Apache-2.0
"""Config keys of Rank-DETR."""

from detectron2.config import CfgNode


def add_rank_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.RANK_DETR`; the defaults are the paper's (Pu et al., NeurIPS 2023)."""
    node = cfg.MODEL.RANK_DETR = CfgNode()
    node.NUM_CLASSES = 80
    # Maps of the backbone, high resolution first, and levels of the transformer: the further
    # ones are made by convolutions of stride 2.
    node.IN_FEATURES = ["res3", "res4", "res5"]
    node.NUM_LEVELS = 4

    node.EMBED_DIM = 256
    node.NUM_HEADS = 8
    node.FEEDFORWARD_DIM = 2048
    node.NUM_ENCODER_LAYERS = 6
    node.NUM_DECODER_LAYERS = 6
    # Sampling points of each head on each level.
    node.NUM_POINTS = 4
    node.DROPOUT = 0.0
    # One-to-one queries, the only ones at inference.
    node.NUM_QUERIES = 300

    node.ONE_TO_MANY = CfgNode()
    # Further queries in training; 0 turns the branch off.
    node.ONE_TO_MANY.NUM_QUERIES = 1500
    # How many of them are to find each box, and the weight of their losses.
    node.ONE_TO_MANY.NUM_REPEATS = 6
    node.ONE_TO_MANY.WEIGHT = 1.0

    # From this iteration on (three quarters of the training) the matcher's cost is minus the class
    # probability times this power of the IoU.
    node.HIGH_ORDER_MATCHING = CfgNode()
    node.HIGH_ORDER_MATCHING.START_ITER = 67500
    node.HIGH_ORDER_MATCHING.IOU_POWER = 4.0

    # Weights of the losses and, alike, of the costs of the matcher before.
    node.CLASS_WEIGHT = 2.0
    node.BBOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    node.FOCAL_ALPHA = 0.25
    node.FOCAL_GAMMA = 2.0
