# SPDX-License-Identifier: Apache-2.0
"""Config keys of `vastdet.backbones`."""

from detectron2.config import CfgNode


def add_backbone_config(cfg: CfgNode) -> None:
    """Add the keys of `vastdet.backbones` to `cfg` in place.

    `MODEL.BACKBONE.FREEZE_AT` and `MODEL.FPN.*` are Detectron2's and mean the same here.
    """
    # The map that feeds P6 and P7: "res5" (RetinaNet, section 4) or "p5" (FCOS, section 3.2).
    cfg.MODEL.FPN.P6P7_IN_FEATURE = "res5"

    cfg.MODEL.TIMM = CfgNode()
    # Any name that timm can turn into feature maps (`timm.list_models()`), with or without a tag.
    cfg.MODEL.TIMM.NAME = "resnet10t"
    # Whether timm loads its own weights; needs its hub or a filled cache.
    cfg.MODEL.TIMM.PRETRAINED = False
    # resN is the deepest map of stride 2^N. Stages deeper than the last one named are not built.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # "" keeps the model's own norm; FrozenBN, SyncBN or GN replaces its batch norms. GN has 32
    # groups, or as many as the greatest common divisor of 32 and the channels.
    cfg.MODEL.TIMM.NORM = ""
    # Stochastic depth rate of the deepest block; 0 turns it off.
    cfg.MODEL.TIMM.DROP_PATH = 0.0

    cfg.MODEL.SWIN = CfgNode()
    # T, S, B or L of the paper. What is not 0 or [] below replaces a part of it.
    cfg.MODEL.SWIN.SIZE = "T"
    cfg.MODEL.SWIN.EMBED_DIM = 0
    cfg.MODEL.SWIN.DEPTHS = []
    cfg.MODEL.SWIN.NUM_HEADS = []
    # 7 for weights trained on images of 224 pixels, 12 for those of 384.
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # Stochastic depth rate of the deepest block; 0 turns it off.
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2
    # resN has stride 2^N. Stages deeper than the last one named are not built.
    cfg.MODEL.SWIN.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
