# SPDX-License-Identifier: Apache-2.0
"""Config keys of Conditional DETR."""

from detectron2.config import CfgNode


def add_conditional_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.CONDITIONAL_DETR`; the defaults are the ResNet-50 model (Meng et al. 2021)."""
    node = cfg.MODEL.CONDITIONAL_DETR = CfgNode()
    node.NUM_CLASSES = 80
    # The one map of the backbone that the transformer sees.
    node.IN_FEATURE = "res5"

    node.EMBED_DIM = 256
    node.NUM_HEADS = 8
    node.FEEDFORWARD_DIM = 2048
    node.NUM_ENCODER_LAYERS = 6
    node.NUM_DECODER_LAYERS = 6
    node.DROPOUT = 0.1
    node.NUM_QUERIES = 300

    # Weights of the losses and, alike, of the costs of the matcher.
    node.CLASS_WEIGHT = 2.0
    node.BBOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    node.FOCAL_ALPHA = 0.25
    node.FOCAL_GAMMA = 2.0
