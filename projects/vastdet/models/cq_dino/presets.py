# SPDX-License-Identifier: Apache-2.0
"""Where the paper and the authors' code differ on the side of the categories."""

from collections.abc import Callable
from dataclasses import dataclass

from vastdet.models.cq_dino.image_labels import AsymmetricLoss, ReleasedAsymmetricLoss
from vastdet.models.cq_dino.selection import MeanAndCells, UnmaskedMeanAndCells
from vastdet.models.cq_dino.tree import CategoryTree, DescendantWeight, ReleasedCategoryTree
from vastdet.vocabulary import CategoryHierarchy


@dataclass(frozen=True)
class Preset:
    """The parts of one reading of CQ-DINO.

    Attributes:
        tree: makes the category tree of a hierarchy.
        image_tokens: makes the tokens of an image, from the channels of the map and of a token.
        loss: makes the loss of the selection.
    """

    tree: Callable[[CategoryHierarchy], CategoryTree]
    image_tokens: Callable[[int, int], MeanAndCells]
    loss: Callable[[], AsymmetricLoss]


def released_tree(hierarchy: CategoryHierarchy) -> CategoryTree:
    """The tree of the authors' code; every image gets it, other than there (only the first)."""
    return ReleasedCategoryTree(hierarchy, weight=DescendantWeight())


PRESETS = {
    "paper": Preset(CategoryTree, MeanAndCells, AsymmetricLoss),
    "official": Preset(released_tree, UnmaskedMeanAndCells, ReleasedAsymmetricLoss),
}


def preset(name: str) -> Preset:
    """The parts by name: `paper`, the default, or `official`, which the authors' weights need.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r} of CQ-DINO; there are {', '.join(PRESETS)}")
    return PRESETS[name]
