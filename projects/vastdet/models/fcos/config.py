# SPDX-License-Identifier: Apache-2.0
"""Config keys of FCOS."""

from detectron2.config import CfgNode

from vastdet.one_stage.config_keys import add_centerness_keys


def add_fcos_config(cfg: CfgNode) -> None:
    """Add `MODEL.FCOS`; the defaults are the method as first published (Tian et al., ICCV 2019)."""
    node = cfg.MODEL.FCOS = CfgNode()
    add_centerness_keys(node)
    # Level i takes boxes whose farthest side lies in (SIZES[i-1], SIZES[i]] pixels of the location;
    # the first starts at 0, the last ends at infinity. One entry fewer than IN_FEATURES.
    node.SIZES_OF_INTEREST = [64, 128, 256, 512]
    # 0: every location inside a box is positive. r > 0: those within r strides of its centre.
    node.CENTER_SAMPLING_RADIUS = 0.0

    # Distances are activation(scale_i * x) strides: "exp" or "relu".
    node.DISTANCE_ACTIVATION = "exp"
    # Whether centre-ness is read from the regression tower rather than the classification tower.
    node.CENTERNESS_ON_REG = False

    # "iou": -log(IoU); "linear_iou": 1 - IoU; "giou": 1 - GIoU.
    node.LOC_LOSS_TYPE = "iou"
    # Weight of a positive location and divisor of the sum. "centerness": centre-ness over the
    # number of positives; "centerness_mean": centre-ness over the sum of centre-ness;
    # "none": 1 over the number of positives.
    node.LOC_LOSS_WEIGHTING = "centerness"

    # "product": class x centre-ness, the threshold bears on the class probability alone;
    # "sqrt": the square root of the product, the threshold bears on that.
    node.SCORE_TYPE = "product"
