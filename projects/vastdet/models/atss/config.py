# SPDX-License-Identifier: Apache-2.0
"""Config keys of ATSS."""

from detectron2.config import CfgNode

from vastdet.one_stage.config_keys import add_centerness_keys


def add_atss_config(cfg: CfgNode) -> None:
    """Add `MODEL.ATSS`; the defaults are the paper's (Zhang et al., CVPR 2020).

    Constants are those of the authors' code (sfzhang15/ATSS, atss_core/config/defaults.py and
    configs/atss/atss_R_50_FPN_1x.yaml).
    """
    node = cfg.MODEL.ATSS = CfgNode()
    add_centerness_keys(node)
    # Side of the one square anchor about a location, in strides (8S in the paper).
    node.ANCHOR_SCALE = 8.0
    # Candidates for a box on each level, nearest centres first: k of algorithm 1.
    node.TOPK = 9
    # Weight of the GIoU loss beside the focal loss and the centre-ness loss.
    node.LOC_LOSS_WEIGHT = 2.0
