# SPDX-License-Identifier: Apache-2.0
"""Category queries that take in those below them (Sun et al., CQ-DINO, section 3.4, Eq. 6 and 7).

K categories, D channels, V categories with children, E edges.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vastdet.vocabulary import CategoryHierarchy

# From a hierarchy whose node k is category k, the share in [0, 1] that the children have in the new
# query of each category: (K,) float64. What it says of categories without children is not read.
ParentWeight = Callable[[CategoryHierarchy], np.ndarray]

# The categories that V3Det has, which the authors' code takes as the bound of all counts.
NUM_V3DET = 13204
# The depth at which the authors' code stops to tell levels apart: their levels 7 to 9, from 1.
DEEPEST_RELEASED = 6


@dataclass(frozen=True)
class AdaptiveWeight:
    """Eq. 7: w at no child, 2w at the largest number of children, by logarithms between.

    Attributes:
        strength: w, from 0 to 0.5.
    """

    strength: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 0.5:
            raise ValueError(
                f"w of Eq. 7 is {self.strength}; it must be from 0 to 0.5, or the share of the "
                "children would pass 1"
            )

    def __call__(self, graph: CategoryHierarchy) -> np.ndarray:
        """See `ParentWeight`."""
        num_children = np.bincount(graph.edges[:, 0], minlength=len(graph))
        largest = max(1, num_children.max(initial=0))
        return self.strength * (1 + np.log1p(num_children) / np.log1p(largest))


@dataclass(frozen=True)
class FixedWeight:
    """The same share for the children of every category.

    Attributes:
        share: from 0 to 1.
    """

    share: float = 0.5

    def __call__(self, graph: CategoryHierarchy) -> np.ndarray:
        """See `ParentWeight`."""
        return np.full(len(graph), self.share)


@dataclass(frozen=True)
class DescendantWeight:
    """What the authors' code has in place of Eq. 7: it counts all that is below a category.

    The share is base + growth * ln(2 + n) / ln(2 + bound), n being the number of paths that lead
    down from the category, which in a tree is that of its descendants.
    """

    base: float = 0.4
    growth: float = 0.4
    bound: int = NUM_V3DET

    def __call__(self, graph: CategoryHierarchy) -> np.ndarray:
        """See `ParentWeight`."""
        num_below = np.zeros(len(graph))
        for depth in reversed(range(graph.num_levels)):
            parents, children = graph.level_edges(depth)
            np.add.at(num_below, parents, 1 + num_below[children])
        return self.base + self.growth * np.log(2 + num_below) / np.log(2 + self.bound)


@dataclass(frozen=True)
class _Level:
    """Parents whose queries change at once.

    Attributes:
        parents: (V,) int64.
        kept: (V, 1), the share of a parent's own query.
        children: (E,) int64.
        slots: (E,) int64, which of `parents` is the child's.
        shares: (E, 1), the share of the child's query in its parent.
    """

    parents: Tensor
    kept: Tensor
    children: Tensor
    slots: Tensor
    shares: Tensor


class CategoryTree(nn.Module):
    """Mixes the mean of its children's queries into that of each category, from the leaves upward.

    Q'_v = (1 - a_v) Q_v + a_v mean Q'_c over the direct children c of v (Eq. 6): children are
    mixed before their parents. Categories without children keep their queries. Any DAG will do; a
    category with several parents counts fully in each. Nodes of the hierarchy that are no category
    have no query: their children count as those of the categories above.

    There are no parameters. The map is linear, so nothing is kept for the backward pass.
    """

    parent_indices: Tensor
    parent_kept: Tensor
    child_indices: Tensor
    child_slots: Tensor
    child_shares: Tensor

    def __init__(self, hierarchy: CategoryHierarchy, *, weight: ParentWeight | None = None) -> None:
        """Lay out the edges of the hierarchy by levels.

        Args:
            hierarchy: of the K categories.
            weight: the share a_v; Eq. 7 with w = 0.3 if None.

        Raises:
            ValueError: `weight` gives a share that is not from 0 to 1.
        """
        super().__init__()
        graph = hierarchy.contracted()
        self.num_categories = len(graph)
        depth = self.parent_depths(graph)
        order = np.lexsort((graph.edges[:, 1], graph.edges[:, 0], -depth[graph.edges[:, 0]]))
        of_edge, children = graph.edges[order].T
        is_first = np.append(True, of_edge[1:] != of_edge[:-1])[: len(of_edge)]
        parents = of_edge[is_first]
        num_children = np.diff(np.append(np.flatnonzero(is_first), len(of_edge)))
        share = (AdaptiveWeight() if weight is None else weight)(graph)[parents]
        if not ((share >= 0) & (share <= 1)).all():
            raise ValueError(
                f"the children's share in a query must be from 0 to 1, got {share.min():.3g} to "
                f"{share.max():.3g}; choose other numbers for the weight of the category tree"
            )
        # Depths from the largest to the smallest, as levels 0, 1, ...
        _, level, num_parents = np.unique(-depth[parents], return_inverse=True, return_counts=True)
        self.num_parents: list[int] = num_parents.tolist()
        self.num_edges: list[int] = np.bincount(level, num_children).astype(np.int64).tolist()
        first_parent = np.cumsum(num_parents) - num_parents
        row = np.arange(len(parents)) - first_parent[level]
        arrays = {
            "parent_indices": parents,
            "parent_kept": (1 - share)[:, None].astype(np.float32),
            "child_indices": children,
            "child_slots": np.repeat(row, num_children),
            "child_shares": np.repeat(share / num_children, num_children)[:, None].astype(
                np.float32
            ),
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array.copy()), persistent=False)

    def parent_depths(self, graph: CategoryHierarchy) -> np.ndarray:
        """(K,) when a category's turn comes: the largest first, equal ones at once."""
        return graph.depths

    def forward(self, queries: Tensor) -> Tensor:
        """Queries (..., K, D), of all images or of each, to mixed ones of the same shape.

        Sums are in float32 at least.

        Raises:
            ValueError: there is not one query a category.
        """
        if queries.shape[-2] != self.num_categories:
            raise ValueError(
                f"the category tree is of {self.num_categories} categories, got queries of shape "
                f"{tuple(queries.shape)}; build both from one CategorySpace"
            )
        if not self.parent_indices.numel():
            return queries
        if torch.is_grad_enabled() and queries.requires_grad:
            return _LinearMap.apply(queries, self._upward, self._downward)
        return self._upward(queries.clone())

    def _levels(self) -> Iterator[_Level]:
        """From the deepest parents to the roots."""
        by_parent = (x.split(self.num_parents) for x in (self.parent_indices, self.parent_kept))
        edges = (self.child_indices, self.child_slots, self.child_shares)
        by_edge = (x.split(self.num_edges) for x in edges)
        for arrays in zip(*by_parent, *by_edge, strict=True):
            yield _Level(*arrays)

    def _upward(self, values: Tensor) -> Tensor:
        """Mix in place."""
        dtype = torch.promote_types(values.dtype, torch.float32)
        for level in self._levels():
            below = values.index_select(-2, level.children).to(dtype) * level.shares
            own = values.index_select(-2, level.parents).to(dtype) * level.kept
            mixed = own.index_add_(-2, level.slots, below)
            values.index_copy_(-2, level.parents, mixed.to(values.dtype))
        return values

    def _downward(self, gradients: Tensor) -> Tensor:
        """The transpose of `_upward`, in place: what reaches a parent goes on to its children."""
        dtype = torch.promote_types(gradients.dtype, torch.float32)
        for level in reversed(list(self._levels())):
            own = gradients.index_select(-2, level.parents).to(dtype)
            below = own.index_select(-2, level.slots) * level.shares
            gradients.index_copy_(-2, level.parents, (own * level.kept).to(gradients.dtype))
            gradients.index_add_(-2, level.children, below.to(gradients.dtype))
        return gradients


class ReleasedCategoryTree(CategoryTree):
    """The order of the authors' code: parents at level 7 (roots are 1) and deeper change at once.

    Of those, a parent reads the queries that its children had before.
    """

    def parent_depths(self, graph: CategoryHierarchy) -> np.ndarray:
        """See `CategoryTree`."""
        return np.minimum(graph.depths, DEEPEST_RELEASED)


class _LinearMap(torch.autograd.Function):
    """A linear map, done in place on a copy, whose derivative is its transpose."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        apply: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Apply."""
        ctx.maps = (transpose, apply)
        return apply(values.clone())

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None, None]:
        """Apply the transpose, which has a derivative in turn."""
        return _LinearMap.apply(gradients, *ctx.maps), None, None
