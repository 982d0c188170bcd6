# SPDX-License-Identifier: Apache-2.0
"""Config keys of DAB-Deformable-DETR and DN-Deformable-DETR."""

from detectron2.config import CfgNode


def add_dab_deformable_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.DAB_DEFORMABLE_DETR`; the defaults are the model without denoising.

    Liu et al., ICLR 2022 (DAB-DETR); Li et al., CVPR 2022 (DN-DETR).
    """
    node = cfg.MODEL.DAB_DEFORMABLE_DETR = CfgNode()
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
    node.NUM_QUERIES = 300

    node.DENOISING = CfgNode()
    # How often each box is there to be restored; 5 in DN-Deformable-DETR, 0 turns denoising off.
    node.DENOISING.NUM_GROUPS = 0
    # This share of the labels is drawn anew.
    node.DENOISING.LABEL_NOISE = 0.2
    # Centres move by up to this much of half a side, sides by up to this much of themselves.
    node.DENOISING.BOX_NOISE = 0.4

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
