# SPDX-License-Identifier: Apache-2.0
"""Config keys of DAB-DETR."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import add_dense_keys, add_focal_keys, add_loss_and_matcher_keys


def add_dab_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.DAB_DETR`; the defaults are the ResNet-50 model (Liu et al., ICLR 2022)."""
    node = cfg.MODEL.DAB_DETR = CfgNode()
    add_dense_keys(node)
    node.NUM_QUERIES = 300
    # Learned contents that each box is paired with, so that there are as many times more queries;
    # 0 for one of zeros.
    node.NUM_PATTERNS = 0
    # Of the position encoding of the cells.
    node.POSITION_TEMPERATURE = 20.0

    add_loss_and_matcher_keys(node)
    add_focal_keys(node.LOSS)
