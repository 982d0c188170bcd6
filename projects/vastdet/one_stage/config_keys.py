# SPDX-License-Identifier: Apache-2.0
"""Config keys that all one-stage detectors with centre-ness have."""

from detectron2.config import CfgNode


def add_centerness_keys(node: CfgNode) -> None:
    """Add the keys that `one_stage.build` reads; FCOS and ATSS publish the same values."""
    node.NUM_CLASSES = 80
    # Pyramid levels in use, high resolution first.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Where a location stands in its cell, in strides: 0.5 is the middle, 0 the top left corner.
    node.POINT_OFFSET = 0.5

    # Convolutions in each tower, their norm ("" for none; "GN" needs a multiple of 32 channels).
    node.NUM_CONVS = 4
    node.NORM = "GN"
    # Class probability that the classifier starts from.
    node.PRIOR_PROB = 0.01

    node.FOCAL_LOSS_ALPHA = 0.25
    node.FOCAL_LOSS_GAMMA = 2.0

    node.SCORE_THRESH_TEST = 0.05
    # Candidates kept on each level before NMS.
    node.TOPK_CANDIDATES_TEST = 1000
    node.NMS_THRESH_TEST = 0.6
