# SPDX-License-Identifier: Apache-2.0
"""Config keys of DAB-DETR."""

from detectron2.config import CfgNode


def add_dab_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.DAB_DETR`; the defaults are the ResNet-50 model (Liu et al., ICLR 2022)."""
    node = cfg.MODEL.DAB_DETR = CfgNode()
    node.NUM_CLASSES = 80
    # The one map of the backbone that the transformer sees.
    node.IN_FEATURE = "res5"

    node.EMBED_DIM = 256
    node.NUM_HEADS = 8
    node.FEEDFORWARD_DIM = 2048
    node.NUM_ENCODER_LAYERS = 6
    node.NUM_DECODER_LAYERS = 6
    node.DROPOUT = 0.0
    node.NUM_QUERIES = 300
    # Learned contents that each box is paired with, so that there are as many times more queries;
    # 0 for one of zeros.
    node.NUM_PATTERNS = 0
    # Of the position encoding of the cells.
    node.POSITION_TEMPERATURE = 20.0

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
