# SPDX-License-Identifier: Apache-2.0
"""Config keys of RT-DETR and RT-DETRv2."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import add_contrastive_denoising_keys, add_loss_and_matcher_keys


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

    add_contrastive_denoising_keys(node)

    # The class cost is that of the focal loss, the class loss the varifocal one.
    add_loss_and_matcher_keys(node)
    node.LOSS.VARIFOCAL_ALPHA = 0.75
    node.LOSS.VARIFOCAL_GAMMA = 2.0
