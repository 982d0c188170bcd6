# SPDX-License-Identifier: Apache-2.0
"""Selections by name."""

from collections.abc import Iterable

from torch import nn

from vastdet.models.cq_dino.scoring import HALF_PRECISION, Scoring
from vastdet.models.cq_dino.selection import CategorySelection
from vastdet.models.cq_dino.shortlist import Shortlist, ShortlistSelection, TokenMatch

# How prepared categories are scored.
SCORINGS = {"full": Scoring(), "bfloat16": HALF_PRECISION}
SELECTIONS = ("exact", "shortlist")


def build_selection(
    name: str,
    layers: Iterable[nn.Module],
    *,
    embed_dim: int,
    context_dim: int,
    num_selected: int = 100,
    chunk_size: int | None = None,
    scoring: str = "full",
    shortlist: Shortlist | None = None,
    key_dim: int = 64,
    num_vectors: int = 32,
) -> CategorySelection:
    """A selection with random weights.

    Args:
        name: `exact` scores all categories, `shortlist` those that a cheap score finds.
        layers: see `CategoryToImageLayer`.
        embed_dim: channels of a category.
        context_dim: channels of an image token.
        num_selected: how many are selected for an image.
        chunk_size: see `CategorySelection`.
        scoring: of prepared categories, `full` precision or `bfloat16`, where the best and 100 more
            are computed again in full.
        shortlist: sizes for `shortlist`; None for the defaults.
        key_dim: channels of the cheap score for `shortlist`, even.
        num_vectors: of an image, for it.

    Raises:
        ValueError: an unknown name, or a wrong number.
    """
    if name not in SELECTIONS or scoring not in SCORINGS:
        raise ValueError(
            f"selection {name!r} (SELECTION.NAME) with scoring {scoring!r} (SELECTION.SCORING); "
            f"expected one of {', '.join(SELECTIONS)} and one of {', '.join(SCORINGS)}"
        )
    if name == "shortlist":
        return ShortlistSelection(
            layers,
            TokenMatch(embed_dim, context_dim, key_dim=key_dim, num_vectors=num_vectors),
            shortlist=shortlist,
            embed_dim=embed_dim,
            num_selected=num_selected,
            chunk_size=chunk_size,
            scoring=SCORINGS[scoring],
        )
    return CategorySelection(
        layers,
        embed_dim=embed_dim,
        num_selected=num_selected,
        chunk_size=chunk_size,
        scoring=SCORINGS[scoring],
    )
