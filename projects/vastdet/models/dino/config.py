# SPDX-License-Identifier: Apache-2.0
"""Config keys of DINO."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import (
    add_contrastive_denoising_keys,
    add_deformable_keys,
    add_focal_keys,
    add_loss_and_matcher_keys,
)


def add_dino_config(cfg: CfgNode) -> None:
    """Add `MODEL.DINO`; the defaults are the 4-scale model (Zhang et al., ICLR 2023)."""
    node = cfg.MODEL.DINO = CfgNode()
    add_deformable_keys(node)
    node.NUM_QUERIES = 900
    # Of the position encoding: 20 and 0 in the authors' code, 10000 and -0.5 in detrex.
    node.POSITION_TEMPERATURE = 20.0
    node.POSITION_OFFSET = 0.0
    # Whether all decoder layers predict with one class and one box head (the authors' code), or
    # each with its own (detrex).
    node.SHARE_HEADS = True

    add_contrastive_denoising_keys(node)
    add_loss_and_matcher_keys(node)
    add_focal_keys(node.LOSS)
