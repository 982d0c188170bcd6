# SPDX-License-Identifier: Apache-2.0
"""Config keys of ROI heads, beside Detectron2's."""

from detectron2.config import CfgNode


def add_faster_rcnn_config(cfg: CfgNode) -> None:
    """Add `MODEL.ROI_BOX_HEAD.PRIOR_PROB` to `cfg` in place."""
    # Where USE_SIGMOID_CE is True, every class starts at it in PriorROIHeads, PriorCascadeROIHeads
    # and CenterNet2's heads.
    cfg.MODEL.ROI_BOX_HEAD.PRIOR_PROB = 0.01
