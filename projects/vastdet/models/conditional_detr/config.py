# SPDX-License-Identifier: Apache-2.0
"""Config keys of Conditional DETR."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import add_dense_keys, add_focal_keys, add_weight_keys


def add_conditional_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.CONDITIONAL_DETR`; the defaults are the ResNet-50 model (Meng et al. 2021)."""
    node = cfg.MODEL.CONDITIONAL_DETR = CfgNode()
    add_dense_keys(node)
    node.DROPOUT = 0.1
    node.NUM_QUERIES = 300

    # Weights of the losses and, alike, of the costs of the matcher.
    add_weight_keys(node, class_weight=2.0)
    add_focal_keys(node)
