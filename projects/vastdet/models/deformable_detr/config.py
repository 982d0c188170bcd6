# SPDX-License-Identifier: Apache-2.0
"""Config keys of Deformable DETR."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import add_deformable_keys, add_focal_keys, add_weight_keys


def add_deformable_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.DEFORMABLE_DETR`; the defaults are the plain model (Zhu et al., ICLR 2021)."""
    node = cfg.MODEL.DEFORMABLE_DETR = CfgNode()
    add_deformable_keys(node)
    node.FEEDFORWARD_DIM = 1024
    node.DROPOUT = 0.1
    node.NUM_QUERIES = 300
    # "plain", "refined" (each layer corrects the boxes of the one before), or "two_stage" (refined,
    # and the encoder proposes the first boxes).
    node.VARIANT = "plain"

    # Weights of the losses and, alike, of the costs of the matcher.
    add_weight_keys(node, class_weight=2.0)
    add_focal_keys(node)
