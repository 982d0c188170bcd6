# SPDX-License-Identifier: Apache-2.0
"""Config keys that several members have, with their most frequent defaults.

Each function adds to a member's node. A member whose paper has another value sets the key again
afterwards.
"""

from detectron2.config import CfgNode


def add_size_keys(node: CfgNode) -> None:
    """Classes, and sizes of encoder and decoder."""
    node.NUM_CLASSES = 80
    node.EMBED_DIM = 256
    node.NUM_HEADS = 8
    node.FEEDFORWARD_DIM = 2048
    node.NUM_ENCODER_LAYERS = 6
    node.NUM_DECODER_LAYERS = 6
    node.DROPOUT = 0.0


def add_dense_keys(node: CfgNode) -> None:
    """Keys of a member that reads one map with dense attention."""
    add_size_keys(node)
    # The one map of the backbone that the transformer sees.
    node.IN_FEATURE = "res5"


def add_deformable_keys(node: CfgNode) -> None:
    """Keys of a member that reads several levels with deformable attention."""
    add_size_keys(node)
    # Maps of the backbone, high resolution first, and levels of the transformer: the further
    # ones are made by convolutions of stride 2.
    node.IN_FEATURES = ["res3", "res4", "res5"]
    node.NUM_LEVELS = 4
    # Sampling points of each head on each level.
    node.NUM_POINTS = 4


def add_contrastive_denoising_keys(node: CfgNode) -> None:
    """Add `DENOISING`: denoising queries as in DINO."""
    node.DENOISING = CfgNode()
    # Positive denoising queries in all groups together; 0 turns denoising off.
    node.DENOISING.NUM_QUERIES = 100
    # Half of this share of the labels is drawn anew.
    node.DENOISING.LABEL_NOISE = 0.5
    # Corners move by up to this much of half a side, in negatives by up to twice as much.
    node.DENOISING.BOX_NOISE = 1.0


def add_dn_denoising_keys(node: CfgNode) -> None:
    """Add `DENOISING`: denoising queries as in DN-DETR."""
    node.DENOISING = CfgNode()
    # How often each box is there to be restored.
    node.DENOISING.NUM_GROUPS = 5
    # This share of the labels is drawn anew.
    node.DENOISING.LABEL_NOISE = 0.2
    # Centres move by up to this much of half a side, sides by up to this much of themselves.
    node.DENOISING.BOX_NOISE = 0.4


def add_one_to_many_keys(node: CfgNode) -> None:
    """Add `ONE_TO_MANY`: the further branch of H-Deformable-DETR."""
    node.ONE_TO_MANY = CfgNode()
    # Further queries in training; 0 turns the branch off.
    node.ONE_TO_MANY.NUM_QUERIES = 1500
    # How many of them are to find each box, and the weight of their losses.
    node.ONE_TO_MANY.NUM_REPEATS = 6
    node.ONE_TO_MANY.WEIGHT = 1.0


def add_weight_keys(node: CfgNode, *, class_weight: float) -> None:
    """Weights of the losses, or of the matcher's costs, or of both alike."""
    node.CLASS_WEIGHT = class_weight
    node.BBOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0


def add_focal_settings(node: CfgNode) -> None:
    """Settings of the focal loss and of the class cost that goes with it."""
    node.FOCAL_ALPHA = 0.25
    node.FOCAL_GAMMA = 2.0


def add_focal_keys(node: CfgNode) -> None:
    """The class loss, and the settings of the focal one and of its class cost."""
    # "focal", or "cross_entropy" (with sigmoids), which leaves the matcher the focal cost.
    node.CLASS_LOSS = "focal"
    add_focal_settings(node)


def add_loss_and_matcher_keys(node: CfgNode) -> None:
    """Add `LOSS` and `MATCHER`, where the losses and the costs have weights of their own."""
    node.LOSS = CfgNode()
    add_weight_keys(node.LOSS, class_weight=1.0)
    node.MATCHER = CfgNode()
    add_weight_keys(node.MATCHER, class_weight=2.0)


def add_dino_keys(node: CfgNode) -> None:
    """Keys of DINO and of detectors that change parts of it; the 4-scale model is the default."""
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
