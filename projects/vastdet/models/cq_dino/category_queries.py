# SPDX-License-Identifier: Apache-2.0
"""The learned queries of all categories, and how categories take note of each other.

C categories, D channels of a query.
"""

from torch import Tensor, nn

from vastdet.layers.attention import MultiheadAttention
from vastdet.text import load_category_embeddings
from vastdet.text.category_embeddings import random_embeddings
from vastdet.vocabulary import CategorySpace

RANDOM = "random"
# Of the rows of `random` embeddings; a row follows from it and from the category's dataset id.
RANDOM_SEED = 0


class CategoryQueries(nn.Module):
    """A learned query for each category (Sun et al. 2025, section 3.2), the same for all images.

    `embedding` (C, D) is projected, goes through a ReLU and then through what relates the
    categories to each other. The projection is that of the authors' code; the paper has none.
    """

    def __init__(self, embedding: Tensor, *, correlation: nn.Module) -> None:
        """Start from embeddings.

        Args:
            embedding: (C, D), of the categories' names as a rule; see `initial_embedding`.
            correlation: maps (C, D) to the same, for example `TreeCorrelation`.
        """
        super().__init__()
        num_channels = embedding.shape[1]
        self.embedding = nn.Parameter(embedding.clone())
        self.proj = nn.Linear(num_channels, num_channels)
        self.correlation = correlation

    def forward(self) -> Tensor:
        """The queries (C, D)."""
        correlated: Tensor = self.correlation(self.proj(self.embedding).relu())
        return correlated

    def of_leaves(self, embeddings: Tensor) -> Tensor:
        """Queries (N, D) of other categories, below which there are none, by their embeddings.

        Raises:
            ValueError: categories attend to each other, so that none has a query of its own.
        """
        alone = self.proj(embeddings).relu()
        correlation = self.correlation
        if isinstance(correlation, TreeCorrelation):
            correlation = correlation.norm
        elif isinstance(correlation, CategorySelfAttention) and not isinstance(
            correlation, ReleasedSelfAttention
        ):
            raise ValueError(
                "the categories of this model attend to each other "
                "(MODEL.CQ_DINO.CATEGORY.CORRELATION self_attention): others have no queries "
                "without them; for a shortlist, give --made-up 0"
            )
        queries: Tensor = correlation(alone)
        return queries


class TreeCorrelation(nn.Module):
    """Parents take in their children (Eq. 6), then a norm."""

    def __init__(self, tree: nn.Module, embed_dim: int) -> None:
        """`tree` is a `CategoryTree`, `embed_dim` is D."""
        super().__init__()
        self.tree = tree
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, queries: Tensor) -> Tensor:
        """(C, D) to the same."""
        normed: Tensor = self.norm(self.tree(queries))
        return normed


class CategorySelfAttention(nn.Module):
    """Categories look at each other: for a flat vocabulary of moderate size (section 3.4)."""

    def __init__(self, embed_dim: int, num_heads: int = 8) -> None:
        """`embed_dim` is D; the paper has 8 heads."""
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, queries: Tensor) -> Tensor:
        """(C, D) to the same."""
        normed: Tensor = self.norm(queries + self.attended(queries[None])[0])
        return normed

    def attended(self, queries: Tensor) -> Tensor:
        """(1, C, D) to the same."""
        return self.self_attn(queries, queries, queries)


class ReleasedSelfAttention(CategorySelfAttention):
    """What the authors' code computes on COCO: each category attends to itself alone.

    Their attention takes the categories for a batch of sequences of length 1. What is left is two
    linear layers; those of query and key have no effect.
    """

    def attended(self, queries: Tensor) -> Tensor:
        """(1, C, D) to the same."""
        one_by_one = queries[0][:, None]
        return self.self_attn(one_by_one, one_by_one, one_by_one)[:, 0][None]


def initial_embedding(source: str, space: CategorySpace, dim: int, *, key: str) -> Tensor:
    """What category queries start from, (C, dim).

    Args:
        source: a file of tools/compute_category_embeddings.py, or "random".
        space: the C categories; rows are found by id and name.
        dim: D.
        key: the config key of the dimension, for errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `source` is empty, the file has another dimension, or lacks a category.
    """
    if not source:
        raise ValueError(
            "category queries start from text embeddings: make a file with "
            "tools/compute_category_embeddings.py and set MODEL.CQ_DINO.CATEGORY.EMBEDDINGS to its "
            f"path, or set it to {RANDOM!r}"
        )
    if source == RANDOM:
        return random_embeddings(space, dim, RANDOM_SEED).rows
    try:
        rows = load_category_embeddings(source, space)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"MODEL.CQ_DINO.CATEGORY.EMBEDDINGS: there is no file {source}; make it with "
            "tools/compute_category_embeddings.py (the head of the config has the command), or, "
            f"where all weights come from a checkpoint, set {RANDOM!r}"
        ) from error
    if rows.shape[1] != dim:
        raise ValueError(
            f"{source} has embeddings of {rows.shape[1]} numbers, but {key} is {dim}; set it to "
            f"{rows.shape[1]}"
        )
    return rows


def no_correlation(embed_dim: int) -> nn.Module:
    """Categories as they are, with a norm: the ablation of section 4.4."""
    return nn.LayerNorm(embed_dim)
