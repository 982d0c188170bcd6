# SPDX-License-Identifier: Apache-2.0
"""Config keys of RT-DETR and RT-DETRv2."""

from detectron2.config import CfgNode


def add_rt_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.RT_DETR`; the defaults are the ResNet-50 model (Zhao et al., CVPR 2024)."""
    node = cfg.MODEL.RT_DETR = CfgNode()
    node.NUM_CLASSES = 80
    # Maps of the backbone, high resolution first; each is one level.
    node.IN_FEATURES = ["res3", "res4", "res5"]

    # The hybrid encoder: its width may differ from the decoder's.
    node.ENCODER_DIM = 256
    node.ENCODER_FEEDFORWARD_DIM = 1024
    node.NUM_ENCODER_LAYERS = 1
    # Inner width of the fusion blocks, as a share of ENCODER_DIM.
    node.EXPANSION = 1.0

    node.EMBED_DIM = 256
    node.NUM_HEADS = 8
    node.FEEDFORWARD_DIM = 1024
    node.NUM_DECODER_LAYERS = 6
    node.DROPOUT = 0.0
    node.NUM_QUERIES = 300
    # Sampling points of each head, one number a level (RT-DETRv2; RT-DETR has 4 on each).
    node.NUM_POINTS = [4, 4, 4]
    # "bilinear", or "discrete": the nearest cell, for devices without interpolation (RT-DETRv2).
    # The offsets then learn nothing and are frozen: start from weights of a bilinear model.
    node.SAMPLING = "bilinear"
    # An offset of as many units as there are points is this share of the reference box's sides.
    node.OFFSET_SCALE = 0.5

    node.DENOISING = CfgNode()
    # Positive denoising queries in all groups together; 0 turns denoising off.
    node.DENOISING.NUM_QUERIES = 100
    # Half of this share of the labels is drawn anew.
    node.DENOISING.LABEL_NOISE = 0.5
    # Corners move by up to this much of half a side, in negatives by up to twice as much.
    node.DENOISING.BOX_NOISE = 1.0

    # Varifocal, L1 and GIoU loss.
    node.LOSS = CfgNode()
    node.LOSS.CLASS_WEIGHT = 1.0
    node.LOSS.BBOX_WEIGHT = 5.0
    node.LOSS.GIOU_WEIGHT = 2.0
    node.LOSS.VARIFOCAL_ALPHA = 0.75
    node.LOSS.VARIFOCAL_GAMMA = 2.0
    # The class cost is that of the focal loss.
    node.MATCHER = CfgNode()
    node.MATCHER.CLASS_WEIGHT = 2.0
    node.MATCHER.BBOX_WEIGHT = 5.0
    node.MATCHER.GIOU_WEIGHT = 2.0
