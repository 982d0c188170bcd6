# SPDX-License-Identifier: Apache-2.0
"""Config keys of CenterNet2."""

from detectron2.config import CfgNode


def add_centernet2_config(cfg: CfgNode) -> None:
    """Add `MODEL.CENTERNET2`, the proposal network; the rest of the detector has Detectron2's keys.

    Defaults are those of the authors' configs/Base-CenterNet2.yaml and, where it says nothing, of
    their centernet/config.py (github.com/xingyizhou/CenterNet2, commit bfc8b72).
    """
    node = cfg.MODEL.CENTERNET2 = CfgNode()
    # Pyramid levels in use, high resolution first.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Smallest and largest half diagonal, in pixels, of the boxes of each level. Ranges overlap: a
    # box may belong to several levels.
    node.SIZES_OF_INTEREST = [[0, 80], [64, 160], [128, 320], [256, 640], [512, 10000000]]

    # Convolutions of the tower, their norm ("" for none; "GN" needs a multiple of 32 channels).
    node.NUM_CONVS = 4
    node.NORM = "GN"
    # Probability that heatmaps start from, and the classifiers of boxes too where they are sigmoid
    # (MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE).
    node.PRIOR_PROB = 0.01

    # The radius of a peak is a diagonal shift of the box, by a share of each side that keeps this
    # IoU along that side; and at least so many pixels.
    node.HEATMAP_MIN_OVERLAP = 0.8
    node.HEATMAP_MIN_RADIUS = 4
    # Focal loss of the heatmap: share of the peaks, power of one minus the target, of the error.
    node.FOCAL_LOSS_ALPHA = 0.25
    node.FOCAL_LOSS_BETA = 4
    node.FOCAL_LOSS_GAMMA = 2.0
    # Probabilities are kept this far from 0 and 1 in the loss.
    node.PROB_CLAMP = 1e-4
    # Locations without a peak whose probability is at least this have no loss: they may be objects
    # without annotation. 1 turns it off.
    node.IGNORE_HIGH_FP = 0.85
    node.POS_WEIGHT = 0.5
    node.NEG_WEIGHT = 0.5
    node.REG_WEIGHT = 1.0

    # Proposals: probability that a location must exceed, candidates of a level, IoU of NMS over all
    # levels, proposals of an image.
    node.SCORE_THRESH = 0.0001
    node.PRE_NMS_TOPK_TRAIN = 4000
    node.PRE_NMS_TOPK_TEST = 1000
    node.NMS_THRESH_TRAIN = 0.9
    node.NMS_THRESH_TEST = 0.9
    node.POST_NMS_TOPK_TRAIN = 2000
    node.POST_NMS_TOPK_TEST = 256
