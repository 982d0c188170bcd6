# SPDX-License-Identifier: Apache-2.0
"""Where the paper and the authors' code differ."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vastdet.detr.denoising import Denoising
from vastdet.detr.prompt_denoising import PositionDenoising, PromptDenoising
from vastdet.detr.prompted_transformer import PromptedTransformer
from vastdet.detr.query_position import BoxPosition
from vastdet.detr.query_source import MixedQueries
from vastdet.models.cq_dino.category_queries import CategorySelfAttention, ReleasedSelfAttention
from vastdet.models.cq_dino.category_side import ReleasedSelectionCriterion, SelectionCriterion
from vastdet.models.cq_dino.image_labels import AsymmetricLoss, ReleasedAsymmetricLoss
from vastdet.models.cq_dino.selection import MeanAndCells, UnmaskedMeanAndCells
from vastdet.models.cq_dino.tree import (
    CategoryTree,
    DescendantWeight,
    ParentWeight,
    ReleasedCategoryTree,
)
from vastdet.vocabulary import CategoryHierarchy


@dataclass(frozen=True)
class Preset:
    """The parts of one reading of CQ-DINO.

    Attributes:
        tree: makes the category tree of a hierarchy, with the weight of the config if one is given.
        self_attention: relates the categories of a flat vocabulary, from their number of channels.
        image_tokens: makes the tokens of an image, from the channels of the map and of a token.
        loss: makes the loss of the selection.
        selection_criterion: makes what adds it up over images, from the loss, mask and weight.
        denoising: makes the denoising queries, from the channels of a query, those of a category
            and the amounts of noise.
        prediction_eps: bounds the logits of the boxes that a layer's predictions start from.
        start: gives parts of a fresh transformer other initial values.
    """

    tree: Callable[..., CategoryTree]
    self_attention: Callable[[int], nn.Module]
    image_tokens: Callable[[int, int], MeanAndCells]
    loss: Callable[..., AsymmetricLoss]
    selection_criterion: Callable[..., SelectionCriterion]
    denoising: Callable[..., Denoising]
    prediction_eps: float
    start: Callable[[PromptedTransformer], None]


def weighted_tree(hierarchy: CategoryHierarchy, weight: ParentWeight | None = None) -> CategoryTree:
    """The tree of the paper, by default with the weight of Eq. 7."""
    return CategoryTree(hierarchy, weight=weight)


def released_tree(hierarchy: CategoryHierarchy, weight: ParentWeight | None = None) -> CategoryTree:
    """The tree of the authors' code, which has a weight of its own.

    Every image gets it, other than there, where the first of a batch alone does.
    """
    return ReleasedCategoryTree(hierarchy, weight=DescendantWeight())


def released_denoising(embed_dim: int, category_dim: int, **amounts: Any) -> Denoising:
    """Denoising queries that know a label's position in its image, not its category."""
    return PositionDenoising(embed_dim, **amounts)


def dino_start(transformer: PromptedTransformer) -> None:
    """Contents of queries and the MLP of their places start as in DINO's code."""


def released_start(transformer: PromptedTransformer) -> None:
    """Both start from Xavier's uniform distribution: contents are a 24th as long as DINO's."""
    source, position = transformer.query_source, transformer.decoder.query_position
    assert isinstance(source, MixedQueries)
    assert isinstance(position, BoxPosition)
    for linear in (source.content, *position.ref_point_head.layers):
        nn.init.xavier_uniform_(linear.weight)


PRESETS = {
    "paper": Preset(
        tree=weighted_tree,
        self_attention=CategorySelfAttention,
        image_tokens=MeanAndCells,
        loss=AsymmetricLoss,
        selection_criterion=SelectionCriterion,
        denoising=PromptDenoising,
        prediction_eps=1e-3,
        start=dino_start,
    ),
    "official": Preset(
        tree=released_tree,
        self_attention=ReleasedSelfAttention,
        image_tokens=UnmaskedMeanAndCells,
        loss=ReleasedAsymmetricLoss,
        selection_criterion=ReleasedSelectionCriterion,
        denoising=released_denoising,
        prediction_eps=1e-5,
        start=released_start,
    ),
}


def preset(name: str) -> Preset:
    """The parts by name: `paper`, the default, or `official`, which the authors' weights need.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r} of CQ-DINO; there are {', '.join(PRESETS)}")
    return PRESETS[name]
