# SPDX-License-Identifier: Apache-2.0
"""Config keys of CQ-DINO."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import (
    add_contrastive_denoising_keys,
    add_deformable_keys,
    add_focal_keys,
    add_loss_and_matcher_keys,
)


def add_cq_dino_config(cfg: CfgNode) -> None:
    """Add `MODEL.CQ_DINO`; the defaults are the model for V3Det (Sun et al., 2025).

    `CQDINO` and `CQDINOSelector`, its first stage of training, read the same node.
    """
    node = cfg.MODEL.CQ_DINO = CfgNode()
    add_deformable_keys(node)
    node.NUM_CLASSES = 13204
    node.NUM_QUERIES = 900
    # Where the paper and the authors' code differ: `paper`, or `official`, which their weights
    # need.
    node.PRESET = "paper"
    # Of the position encoding of image cells, as in DINO.
    node.POSITION_TEMPERATURE = 20.0
    node.POSITION_OFFSET = 0.0
    # The categories, with their names and their tree: a registered dataset, or a .json that
    # CategorySpace.save wrote; empty for the first of DATASETS.TRAIN.
    node.VOCABULARY = ""

    _add_category_keys(node)
    _add_selection_keys(node)
    _add_fusion_keys(node)
    add_contrastive_denoising_keys(node)
    add_loss_and_matcher_keys(node)
    add_focal_keys(node.LOSS)


def _add_category_keys(node: CfgNode) -> None:
    """Add `CATEGORY`: the queries of all categories."""
    node.CATEGORY = CfgNode()
    # What queries start from: a file of tools/compute_category_embeddings.py, or `random`.
    node.CATEGORY.EMBEDDINGS = ""
    # Channels of a query, those of the text encoder (768 for CLIP ViT-L).
    node.CATEGORY.DIM = 768
    # How categories take note of each other: `tree`, `self_attention` or `none`.
    node.CATEGORY.CORRELATION = "tree"
    # The share of the children in the query of a parent: `adaptive` (Eq. 7, w is TREE_STRENGTH) or
    # `fixed` (TREE_STRENGTH itself).
    node.CATEGORY.TREE_WEIGHT = "adaptive"
    node.CATEGORY.TREE_STRENGTH = 0.3
    # What the detector is told of a selected category: what its query became when it had `seen` the
    # image, or `seen_and_own`, the query itself as well.
    node.CATEGORY.PROMPT = "seen"


def _add_selection_keys(node: CfgNode) -> None:
    """Add `SELECTION`: the choice of the categories that an image may show."""
    node.SELECTION = CfgNode()
    # `exact` scores all categories; `shortlist` trains a cheap score beside it, and at inference
    # scores only the categories that this one finds.
    node.SELECTION.NAME = "exact"
    # How all are scored at inference: in `full` precision, or in `bfloat16`, where the best and 100
    # more are computed again in full.
    node.SELECTION.SCORING = "full"
    # Categories that are selected for an image: 100 for V3Det, 30 for COCO.
    node.SELECTION.NUM_SELECTED = 100
    # The map of the backbone that categories look at; empty for the last of IN_FEATURES.
    node.SELECTION.IN_FEATURE = ""
    # Layers in which they look at it, and their sizes.
    node.SELECTION.NUM_LAYERS = 2
    node.SELECTION.NUM_HEADS = 4
    node.SELECTION.IMAGE_DIM = 512
    node.SELECTION.FEEDFORWARD_DIM = 3072
    node.SELECTION.DROPOUT = 0.1
    # Categories that are scored at once in training, to save memory; 0 for all.
    node.SELECTION.CHUNK_SIZE = 0
    node.SELECTION.SHORTLIST = CfgNode()
    # Categories on the shortlist, keys that each of an image's vectors is compared with for it,
    # channels of a key, and vectors of an image.
    node.SELECTION.SHORTLIST.SIZE = 700
    node.SELECTION.SHORTLIST.NUM_SCANNED = 32768
    node.SELECTION.SHORTLIST.KEY_DIM = 64
    node.SELECTION.SHORTLIST.NUM_VECTORS = 32
    # In the first iterations of a training the categories of an image are selected whatever their
    # scores, so that the detector learns while the selection does: training in a single stage.
    node.SELECTION.WARMUP_ITERS = 0
    # Of the asymmetric loss, which is averaged over images.
    node.SELECTION.LOSS_WEIGHT = 2.0
    node.SELECTION.GAMMA_NEGATIVE = 7.0
    node.SELECTION.GAMMA_POSITIVE = 0.0
    node.SELECTION.CLIP = 0.05


def _add_fusion_keys(node: CfgNode) -> None:
    """Add `FUSION`: the attention between image and categories in the feature enhancer."""
    node.FUSION = CfgNode()
    node.FUSION.DIM = 1024
    node.FUSION.NUM_HEADS = 4
    node.FUSION.DROPOUT = 0.1
