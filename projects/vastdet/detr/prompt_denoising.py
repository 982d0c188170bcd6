# SPDX-License-Identifier: Apache-2.0
"""Denoising where the labels are too many, or too free, for a table of their contents.

B images, G slots for ground-truth boxes, C channels, V labels with D features.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.detr.denoising import ContrastiveGroups, LabelContent, LabelEmbedding
from vastdet.detr.structures import DenoisingQueries, Targets


class LabelProjection(nn.Linear, LabelContent):
    """A label's content is a projection of its features.

    Only the rows that are asked for are projected: the cost does not grow with the vocabulary.
    """

    def num_labels(self, label_features: Tensor | None) -> int:
        """V."""
        return len(require_features(label_features))

    def forward(self, labels: Tensor, label_features: Tensor | None = None) -> Tensor:
        """Labels (...) and features (V, D) to contents (..., C)."""
        rows = F.embedding(labels, require_features(label_features))
        contents: Tensor = nn.Linear.forward(self, rows.to(self.weight.dtype))
        return contents


def require_features(label_features: Tensor | None) -> Tensor:
    """The features (V, D) that denoising needs.

    Raises:
        ValueError: there are none.
    """
    if label_features is None:
        raise ValueError(
            "denoising queries are made from the features of all labels, but the prompt has None; "
            "give PromptTokens label_features of shape (V, D), one row a label"
        )
    return label_features


class PromptDenoising(ContrastiveGroups):
    """As `ContrastiveDenoising`; a content is a projection of what the label's category is.

    Labels are replaced by any other of the V, in the prompt of the image or not.
    """

    def __init__(self, embed_dim: int, feature_dim: int, **amounts: Any) -> None:
        """`embed_dim` is C, `feature_dim` D; for the amounts see `ContrastiveGroups`."""
        super().__init__(LabelProjection(feature_dim, embed_dim), **amounts)


class PositionContent(LabelEmbedding):
    """A content for each position of a label within its image; every row may be drawn."""

    def num_labels(self, label_features: Tensor | None) -> int:
        """All rows."""
        return self.num_embeddings


class PositionDenoising(ContrastiveGroups):
    """As `ContrastiveDenoising`; a content says which category of its image a label is, by number.

    The categories of an image are numbered at random, as in the authors' code of CQ-DINO, where
    the number is the place in a shuffled prompt: contents carry no identity of a category. Labels
    are replaced by any number there is a row for.
    """

    def __init__(self, embed_dim: int, num_positions: int = 256, **amounts: Any) -> None:
        """`embed_dim` is C; for the amounts see `ContrastiveGroups`."""
        super().__init__(PositionContent(num_positions, embed_dim), **amounts)
        self.num_positions = num_positions

    def forward(
        self, targets: Targets, num_matching: int, label_features: Tensor | None = None
    ) -> DenoisingQueries:
        """Make the queries of a batch, to go before `num_matching` others.

        Raises:
            ValueError: an image has more categories than there are positions.
        """
        positions = self.draw_positions(targets)
        # Asks the device only where there are boxes enough.
        if max(targets.num_boxes, default=0) > self.num_positions:
            highest = int(positions.max())
            if highest >= self.num_positions:
                raise ValueError(
                    f"an image has boxes of {highest + 1} categories, more than the "
                    f"{self.num_positions} positions that denoising has contents for; "
                    "raise num_positions"
                )
        return super().forward(replace(targets, labels=positions), num_matching, label_features)

    def draw_positions(self, targets: Targets) -> Tensor:
        """(B, G) int64: the number of each label, below that of its image's categories."""
        by_appearance = positions_of_labels(targets)
        if not by_appearance.numel():
            return by_appearance
        # A random order of the numbers that an image uses; the others come after them.
        keys = torch.rand(by_appearance.shape, device=by_appearance.device)
        unused = torch.arange(keys.shape[1], device=keys.device) > by_appearance.amax(1)[:, None]
        places = (keys + unused).argsort(dim=1).argsort(dim=1)
        return torch.where(targets.filled, places.gather(1, by_appearance), 0)


def positions_of_labels(targets: Targets) -> Tensor:
    """(B, G) int64: the number of a label among those of its image, by first appearance.

    0 in empty slots.
    """
    labels, filled = targets.labels, targets.filled
    # The first slot with the label of each slot; filled slots come before empty ones.
    first = (labels[:, :, None] == labels[:, None]).int().argmax(dim=-1)
    is_first = (first == torch.arange(labels.shape[1], device=labels.device)) & filled
    return torch.where(filled, (is_first.cumsum(dim=1) - 1).gather(1, first), 0)
