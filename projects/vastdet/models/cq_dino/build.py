# SPDX-License-Identifier: Apache-2.0
"""The parts of CQ-DINO that both stages of its training have, from `MODEL.CQ_DINO`."""

import difflib
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from torch import nn

from vastdet.models.cq_dino.category_queries import (
    CategoryQueries,
    TreeCorrelation,
    initial_embedding,
    no_correlation,
)
from vastdet.models.cq_dino.category_side import CategorySide, SelectionCriterion
from vastdet.models.cq_dino.image_labels import AncestorMask
from vastdet.models.cq_dino.presets import preset
from vastdet.models.cq_dino.selection import category_to_image_layers
from vastdet.models.cq_dino.selection_build import build_selection
from vastdet.models.cq_dino.shortlist import Shortlist
from vastdet.models.cq_dino.tree import AdaptiveWeight, FixedWeight, ParentWeight
from vastdet.vocabulary import CategoryHierarchy, CategorySpace

KEY = "MODEL.CQ_DINO"


def vocabulary(cfg: CfgNode) -> CategorySpace:
    """The categories that the model is built for.

    Raises:
        FileNotFoundError: there is no such .json, or the files of the dataset are not there.
        ValueError: nothing is named, there is no such dataset, or not NUM_CLASSES categories.
    """
    node = cfg.MODEL.CQ_DINO
    source = node.VOCABULARY or next(iter(cfg.DATASETS.TRAIN), "")
    if not source:
        raise ValueError(
            f"CQ-DINO must know its categories: set {KEY}.VOCABULARY to a registered dataset or to "
            "a .json of CategorySpace.save, or name a dataset in DATASETS.TRAIN"
        )
    if source.endswith(".json"):
        space = CategorySpace.load(source)
    elif source in MetadataCatalog:
        space = CategorySpace.from_metadata(MetadataCatalog.get(source))
    else:
        close = difflib.get_close_matches(source, MetadataCatalog.list(), n=1)
        hint = f"did you mean {close[0]}?" if close else "register it (--register NAME JSON IMAGES)"
        raise ValueError(f"{KEY}.VOCABULARY: there is no dataset {source!r}, nor a .json; {hint}")
    if len(space) != node.NUM_CLASSES:
        raise ValueError(
            f"{KEY}.NUM_CLASSES is {node.NUM_CLASSES}, but {source} has {len(space)} categories; "
            f"set it to {len(space)}, or name another vocabulary in {KEY}.VOCABULARY"
        )
    return space


def build_category_side(
    cfg: CfgNode, space: CategorySpace, shapes: Mapping[str, ShapeSpec]
) -> CategorySide:
    """Queries, image tokens and selection; `shapes` are the backbone's maps.

    Raises:
        ValueError: a setting is wrong; more categories are to be selected than there are.
    """
    node = cfg.MODEL.CQ_DINO
    category, selection = node.CATEGORY, node.SELECTION
    # Here, and not in the first iteration only, the key to change can be named.
    if len(space) < selection.NUM_SELECTED:
        raise ValueError(
            f"{KEY}.SELECTION.NUM_SELECTED is {selection.NUM_SELECTED}, but there are only "
            f"{len(space)} categories; set it to {len(space)} or less"
        )
    embedding = initial_embedding(
        category.EMBEDDINGS, space, category.DIM, key=f"{KEY}.CATEGORY.DIM"
    )
    parts = preset(node.PRESET)
    return CategorySide(
        queries=CategoryQueries(embedding, correlation=build_correlation(node, space)),
        image_tokens=parts.image_tokens(
            shapes[selection_feature(node)].channels, selection.IMAGE_DIM
        ),
        selection=build_selection(
            selection.NAME,
            category_to_image_layers(
                selection.NUM_LAYERS,
                embed_dim=category.DIM,
                context_dim=selection.IMAGE_DIM,
                num_heads=selection.NUM_HEADS,
                feedforward_dim=selection.FEEDFORWARD_DIM,
                dropout=selection.DROPOUT,
            ),
            embed_dim=category.DIM,
            context_dim=selection.IMAGE_DIM,
            num_selected=selection.NUM_SELECTED,
            chunk_size=selection.CHUNK_SIZE or None,
            scoring=selection.SCORING,
            shortlist=Shortlist(selection.SHORTLIST.SIZE, selection.SHORTLIST.NUM_SCANNED),
            key_dim=selection.SHORTLIST.KEY_DIM,
            num_vectors=selection.SHORTLIST.NUM_VECTORS,
        ),
    )


def selection_feature(node: CfgNode) -> str:
    """The map of the backbone that the selection looks at."""
    return node.SELECTION.IN_FEATURE or node.IN_FEATURES[-1]


def build_correlation(node: CfgNode, space: CategorySpace) -> nn.Module:
    """How categories take note of each other, by `CATEGORY.CORRELATION`.

    Raises:
        ValueError: an unknown name, or a tree for a vocabulary without one.
    """
    category, parts = node.CATEGORY, preset(node.PRESET)
    if category.CORRELATION == "tree":
        tree = parts.tree(require_hierarchy(space), parent_weight(category))
        return TreeCorrelation(tree, category.DIM)
    if category.CORRELATION == "self_attention":
        return parts.self_attention(category.DIM)
    if category.CORRELATION == "none":
        return no_correlation(category.DIM)
    raise ValueError(
        f"{KEY}.CATEGORY.CORRELATION is {category.CORRELATION!r}; expected 'tree', "
        "'self_attention' or 'none'"
    )


def parent_weight(category: CfgNode) -> ParentWeight:
    """The share of the children, by `TREE_WEIGHT` and `TREE_STRENGTH`.

    Raises:
        ValueError: an unknown name, or a strength out of range.
    """
    if category.TREE_WEIGHT == "adaptive":
        return AdaptiveWeight(category.TREE_STRENGTH)
    if category.TREE_WEIGHT == "fixed":
        return FixedWeight(category.TREE_STRENGTH)
    raise ValueError(
        f"{KEY}.CATEGORY.TREE_WEIGHT is {category.TREE_WEIGHT!r}; expected 'adaptive' or 'fixed'"
    )


def require_hierarchy(space: CategorySpace) -> CategoryHierarchy:
    """The hierarchy of a vocabulary; raises ValueError where there is none."""
    if space.hierarchy is None:
        raise ValueError(
            f"{KEY}.CATEGORY.CORRELATION is 'tree', but the {len(space)} categories have no "
            "hierarchy; set it to 'self_attention' or 'none', or register the dataset with its "
            "tree"
        )
    return space.hierarchy


def build_selection_criterion(node: CfgNode, space: CategorySpace) -> SelectionCriterion:
    """The loss of the selection; ancestors of labels are left out where there is a tree."""
    selection, parts = node.SELECTION, preset(node.PRESET)
    has_tree = node.CATEGORY.CORRELATION == "tree"
    return parts.selection_criterion(
        parts.loss(
            gamma_negative=selection.GAMMA_NEGATIVE,
            gamma_positive=selection.GAMMA_POSITIVE,
            clip=selection.CLIP,
        ),
        mask=AncestorMask(require_hierarchy(space)) if has_tree else None,
        weight=selection.LOSS_WEIGHT,
    )
