# SPDX-License-Identifier: Apache-2.0
"""Config keys of Deformable DETR."""

from detectron2.config import CfgNode


def add_deformable_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.DEFORMABLE_DETR`; the defaults are the plain model (Zhu et al., ICLR 2021)."""
    node = cfg.MODEL.DEFORMABLE_DETR = CfgNode()
    node.NUM_CLASSES = 80
    # Maps of the backbone, high resolution first, and levels of the transformer: the further
    # ones are made by convolutions of stride 2.
    node.IN_FEATURES = ["res3", "res4", "res5"]
    node.NUM_LEVELS = 4

    node.EMBED_DIM = 256
    node.NUM_HEADS = 8
    node.FEEDFORWARD_DIM = 1024
    node.NUM_ENCODER_LAYERS = 6
    node.NUM_DECODER_LAYERS = 6
    # Sampling points of each head on each level.
    node.NUM_POINTS = 4
    node.DROPOUT = 0.1
    node.NUM_QUERIES = 300
    # "plain", "refined" (each layer corrects the boxes of the one before), or "two_stage" (refined,
    # and the encoder proposes the first boxes).
    node.VARIANT = "plain"

    # Weights of the losses and, alike, of the costs of the matcher.
    node.CLASS_WEIGHT = 2.0
    node.BBOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    node.FOCAL_ALPHA = 0.25
    node.FOCAL_GAMMA = 2.0
