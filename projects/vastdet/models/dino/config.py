# SPDX-License-Identifier: Apache-2.0
"""Config keys of DINO."""

from detectron2.config import CfgNode


def add_dino_config(cfg: CfgNode) -> None:
    """Add `MODEL.DINO`; the defaults are the 4-scale model (Zhang et al., ICLR 2023)."""
    node = cfg.MODEL.DINO = CfgNode()
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
    # Of the position encoding: 20 and 0 in the authors' code, 10000 and -0.5 in detrex.
    node.POSITION_TEMPERATURE = 20.0
    node.POSITION_OFFSET = 0.0
    # Whether all decoder layers predict with one class and one box head (the authors' code), or
    # each with its own (detrex).
    node.SHARE_HEADS = True

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
    node.LOSS.FOCAL_ALPHA = 0.25
    node.LOSS.FOCAL_GAMMA = 2.0
    node.MATCHER = CfgNode()
    node.MATCHER.CLASS_WEIGHT = 2.0
    node.MATCHER.BBOX_WEIGHT = 5.0
    node.MATCHER.GIOU_WEIGHT = 2.0
