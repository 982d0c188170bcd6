# SPDX-License-Identifier: Apache-2.0
"""Fewer numbers an embedding: the principal components of a vocabulary.

K categories, E numbers of the encoder, D components.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the largest singular value; what is smaller is rounding.
SMALLEST_SHARE = 1e-5


@dataclass(frozen=True, eq=False)
class Projection:
    """Rows of an encoder to their components in a vocabulary, of length 1.

    Attributes:
        mean: (E,) float32, what is subtracted.
        weights: (E, D) float32, a component a column, each times its scale.
    """

    mean: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.weights.shape)
        if len(shape) != 2 or tuple(self.mean.shape) != shape[:1]:
            raise ValueError(f"a projection {shape} for a mean {tuple(self.mean.shape)}")

    @classmethod
    def fit(cls, rows: Tensor, num_components: int) -> "Projection":
        """Find the D largest principal components of rows (K, E).

        Coordinate i is scaled by (s_i / s_1)^(-1/2), s the singular values: its spread falls with
        their root, so that what few names say, such as a colour, counts more than by its variance.
        The entry of a component that is farthest from 0 is positive.

        Raises:
            ValueError: all rows are equal, or there are fewer than two, or of one number; D is not
                in [1, min(K, E)), or above the number of different directions.
        """
        limit = min(rows.shape)
        if limit < 2 or (rows == rows[0]).all():
            raise ValueError(
                "components need at least two different embeddings, of at least two numbers each; "
                f"got {rows.shape[0]} of {rows.shape[1]}{' that are equal' if limit > 1 else ''}; "
                "use the embeddings as they are"
            )
        if not 1 <= num_components < limit:
            raise ValueError(
                f"{num_components} components of {rows.shape[0]} embeddings of {rows.shape[1]} "
                f"numbers; expected at least 1 and fewer than {limit}"
            )
        mean = rows.double().mean(dim=0)
        _, values, components = torch.linalg.svd(rows.double() - mean, full_matrices=False)
        found = int((values > SMALLEST_SHARE * values[0]).sum())
        if num_components > found:
            raise ValueError(
                f"the embeddings differ in {found} directions only, {num_components} components "
                f"were asked for; take {found} or fewer"
            )
        values, components = values[:num_components], components[:num_components]
        farthest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        scales = (values / values[0]) ** -0.5
        weights = (components * farthest.sign() * scales[:, None]).T
        return cls(mean.float(), weights.float().contiguous())

    def __call__(self, rows: Tensor) -> Tensor:
        """Embeddings (N, E) to (N, D) float32 of length 1.

        Raises:
            ValueError: rows of another width, or one that is the mean itself.
        """
        if rows.shape[1] != len(self.mean):
            raise ValueError(
                f"embeddings of {rows.shape[1]} numbers, where the components are of "
                f"{len(self.mean)}; use the encoder that they were made with"
            )
        projected = (rows.double() - self.mean.double()) @ self.weights.double()
        if (projected.norm(dim=1) < SMALLEST_SHARE).any():
            raise ValueError(
                "an embedding has no share in the components, so it has no direction; take more"
            )
        return F.normalize(projected, dim=1).float()
