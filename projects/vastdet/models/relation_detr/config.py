# SPDX-License-Identifier: Apache-2.0
"""Config keys of Relation-DETR."""

from detectron2.config import CfgNode


def add_relation_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.RELATION_DETR`; the defaults are the model of Hou et al., ECCV 2024."""
    node = cfg.MODEL.RELATION_DETR = CfgNode()
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
    node.NUM_QUERIES = 900
    # Height and width of a padded batch are multiples of it; the border counts as padding.
    node.SIZE_DIVISIBILITY = 32

    # Queries of the one-to-many branch in training, 0 for none; how often they are to find each
    # box, and the weight of their losses.
    node.ONE_TO_MANY = CfgNode()
    node.ONE_TO_MANY.NUM_QUERIES = 1500
    node.ONE_TO_MANY.NUM_REPEATS = 6
    node.ONE_TO_MANY.WEIGHT = 1.0

    node.DENOISING = CfgNode()
    # Positive denoising queries in all groups together; 0 turns denoising off.
    node.DENOISING.NUM_QUERIES = 100
    # Half of this share of the labels is drawn anew.
    node.DENOISING.LABEL_NOISE = 0.5
    # Corners move by up to this much of half a side, in negatives by up to twice as much.
    node.DENOISING.BOX_NOISE = 1.0

    node.LOSS = CfgNode()
    node.LOSS.CLASS_WEIGHT = 1.0
    node.LOSS.BBOX_WEIGHT = 5.0
    node.LOSS.GIOU_WEIGHT = 2.0
    # Of the varifocal loss.
    node.LOSS.ALPHA = 0.75
    node.LOSS.GAMMA = 2.0
    node.MATCHER = CfgNode()
    node.MATCHER.CLASS_WEIGHT = 2.0
    node.MATCHER.BBOX_WEIGHT = 5.0
    node.MATCHER.GIOU_WEIGHT = 2.0
