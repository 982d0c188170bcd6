# SPDX-License-Identifier: Apache-2.0
"""Class heads that compare features with prototypes of the categories.

C channels, D numbers a prototype, K classes.
"""

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vastdet.detr.denoising import ContrastiveGroups, LabelContent


class Prototypes(nn.Module):
    """K directions, one a category: fixed, or learned from where they start.

    Fixed ones are kept with the weights as well, so that a trained model needs no file of them.
    """

    def __init__(self, rows: Tensor, *, learned: bool) -> None:
        """`rows` (K, D) may have any length but 0."""
        super().__init__()
        rows = F.normalize(rows, dim=1)
        if learned:
            self.rows = nn.Parameter(rows)
        else:
            self.register_buffer("rows", rows)

    @property
    def dim(self) -> int:
        """D."""
        return self.rows.shape[1]

    def forward(self) -> Tensor:
        """(K, D), of length 1."""
        return F.normalize(self.rows, dim=1)


class AlignmentHead(nn.Module):
    """Features (..., C) to K logits: cosines of projected features and prototypes, scaled."""

    def __init__(self, embed_dim: int, prototypes: Prototypes, *, scale: float) -> None:
        """Start with a random projection.

        Args:
            embed_dim: C.
            prototypes: may be shared with other modules.
            scale: the cosines, in [-1, 1], are multiplied by it.
        """
        super().__init__()
        self.projection = nn.Linear(embed_dim, prototypes.dim, bias=False)
        nn.init.normal_(self.projection.weight, std=prototypes.dim**-0.5)
        self.prototypes = prototypes
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """(..., K), in [-scale, scale]."""
        directions = F.normalize(self.projection(features), dim=-1)
        # Scaled before the product, which is K / D times as large.
        return F.linear(self.scale * directions, self.prototypes())


class PrototypeClassifier(nn.Module):
    """The mean of the logits of a linear head and of alignment heads."""

    def __init__(self, linear: nn.Linear, alignments: Iterable[AlignmentHead]) -> None:
        """All map (..., C) to the same K logits."""
        super().__init__()
        self.linear = linear
        self.alignments = nn.ModuleList(alignments)

    def forward(self, features: Tensor) -> Tensor:
        """(..., K)."""
        logits = self.linear(features)
        # In place: with 13,204 classes the logits of all tokens are the largest tensors there are.
        for alignment in self.alignments:
            logits += alignment(features)
        return logits.div_(1 + len(self.alignments))


class PrototypeLabels(LabelContent):
    """Labels (...) to contents (..., C): projections of their prototypes."""

    def __init__(self, prototypes: Prototypes, embed_dim: int) -> None:
        """`embed_dim` is C."""
        super().__init__()
        self.prototypes = prototypes
        self.projection = nn.Linear(prototypes.dim, embed_dim, bias=False)
        # Prototypes have length 1, so contents start as those of a table do: with variance 1.
        nn.init.normal_(self.projection.weight)

    def num_labels(self, label_features: Tensor | None) -> int:
        """K."""
        return len(self.prototypes.rows)

    def forward(self, labels: Tensor, label_features: Tensor | None = None) -> Tensor:
        """(..., C)."""
        contents: Tensor = self.projection(self.prototypes()[labels])
        return contents


class PrototypeDenoising(ContrastiveGroups):
    """Contrastive denoising whose contents are projections of prototypes."""

    def __init__(
        self, prototypes: Prototypes, embed_dim: int, num_classes: int, **amounts: Any
    ) -> None:
        """`embed_dim` is C, `num_classes` K; for the amounts see `ContrastiveGroups`."""
        assert len(prototypes.rows) == num_classes
        super().__init__(PrototypeLabels(prototypes, embed_dim), **amounts)
