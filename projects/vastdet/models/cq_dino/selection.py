# SPDX-License-Identifier: Apache-2.0
"""Image-guided query selection: the categories that an image is likely to show (section 3.3).

B images, C categories, K selected ones, D channels of a category, S tokens of an image, M channels
of a token, F channels of a feature map of H x W cells.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vastdet.detr.heads import prior_bias
from vastdet.detr.query_selection import gather_tokens
from vastdet.layers.attention import CrossAttention
from vastdet.layers.mlp import FeedForward
from vastdet.layers.weight_cache import WeightCache
from vastdet.models.cq_dino.scoring import (
    ImageContext,
    PreparedCategories,
    Scoring,
    best_categories,
    one_by_one,
    scores_of,
)

# Of any category before training; absent ones then have next to no asymmetric loss.
START_PROBABILITY = 0.1
# The epsilon of BERT's norms, which the authors' layers are taken from.
NORM_EPS = 1e-12


@dataclass(frozen=True)
class ImageTokens:
    """What categories look at.

    Attributes:
        values: (B, S, M).
        padding_mask: (B, S) bool, True at padding.
    """

    values: Tensor
    padding_mask: Tensor


class MeanAndCells(nn.Module):
    """The tokens of a feature map: the mean of its cells, then each cell, projected."""

    def __init__(self, map_dim: int, embed_dim: int) -> None:
        """`map_dim` is F, `embed_dim` is M."""
        super().__init__()
        self.proj = nn.Linear(map_dim, embed_dim)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, features: Tensor, padding_mask: Tensor) -> ImageTokens:
        """A map (B, F, H, W) with a mask (B, H, W), True at padding, to 1 + H * W tokens.

        Padding is not in the mean and is marked in the tokens.
        """
        cells = features.flatten(2).transpose(1, 2)
        padding = padding_mask.flatten(1)
        inside = cells.masked_fill(padding.unsqueeze(-1), 0)
        num_inside = (~padding).sum(dim=1).clamp(min=1)[:, None, None]
        # In half precision a large map's sum would overflow.
        dtype = torch.promote_types(cells.dtype, torch.float32)
        mean = inside.sum(dim=1, keepdim=True, dtype=dtype) / num_inside
        values = self.proj(torch.cat([mean.to(cells.dtype), cells], dim=1))
        return ImageTokens(values, F.pad(padding, (1, 0), value=False))


class UnmaskedMeanAndCells(MeanAndCells):
    """The authors' code: padding counts as image, so that a result depends on the batch."""

    def forward(self, features: Tensor, padding_mask: Tensor) -> ImageTokens:
        """See `MeanAndCells`; nothing is marked as padding."""
        return super().forward(features, torch.zeros_like(padding_mask))


class CategoryToImageLayer(nn.Module):
    """Cross-attention and a feed-forward block, each with a residual connection and a norm after.

    Categories do not look at each other, so any part of them may be computed alone.
    """

    def __init__(
        self,
        cross_attn: CrossAttention,
        ffn: nn.Module,
        *,
        embed_dim: int,
        dropout: float = 0.0,
    ) -> None:
        """`dropout` acts on the results of both blocks."""
        super().__init__()
        self.cross_attn = cross_attn
        self.cross_attn_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, blocked: Tensor) -> Tensor:
        """Categories (B or 1, C, D) to (B, C, D); see `ImageContext` for the rest."""
        attended = self.cross_attn(queries, keys, values, blocked=blocked)
        queries = self.cross_attn_norm(queries + self.dropout(attended))
        return self.ffn_norm(queries + self.dropout(self.ffn(queries)))


def category_to_image_layers(
    num_layers: int = 2,
    *,
    embed_dim: int = 768,
    context_dim: int = 512,
    num_heads: int = 4,
    feedforward_dim: int = 3072,
    dropout: float = 0.1,
) -> list[CategoryToImageLayer]:
    """The layers of the authors, who drop at attention weights and at both blocks' results.

    `embed_dim` is D, `context_dim` is M.
    """
    return [
        CategoryToImageLayer(
            CrossAttention(embed_dim, num_heads, context_dim=context_dim, dropout=dropout),
            FeedForward(embed_dim, feedforward_dim, activation=nn.GELU),
            embed_dim=embed_dim,
            dropout=dropout,
        )
        for _ in range(num_layers)
    ]


@dataclass(frozen=True)
class SelectedCategories:
    """The chosen categories of each image, best first.

    Attributes:
        indices: (B, K) int64.
        queries: (B, K, D), what they became when they had seen the image.
        logits: (B, K), their scores.
        all_logits: (B, C), the scores of all categories; None where they were not kept.
        losses: of parts of the selection that learn from its scores; name -> scalar.
    """

    indices: Tensor
    queries: Tensor
    logits: Tensor
    all_logits: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class CategorySelection(nn.Module):
    """Lets every category look at the image, scores it, and keeps the best.

    With a chunk size, categories are scored piece by piece, and those selected are computed once
    more: memory then holds one piece, not all, and in training each piece is computed again for
    its gradient. Results are the same, but for what dropout drops.

    At inference, `prepared` keeps what does not depend on the image until a weight changes, and
    scores of categories that are not selected are not kept.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        *,
        embed_dim: int,
        num_selected: int = 100,
        chunk_size: int | None = None,
        scoring: Scoring | None = None,
    ) -> None:
        """Take the layers, first to last.

        Args:
            layers: see `CategoryToImageLayer`.
            embed_dim: D.
            num_selected: K; the paper has 100 for V3Det and 30 for COCO.
            chunk_size: how many categories are computed at once; None for all. Prepared ones have
                the chunk size of `scoring`.
            scoring: how prepared categories are scored; None for `Scoring()`.

        Raises:
            ValueError: `num_selected` or `chunk_size` is below 1.
        """
        super().__init__()
        for name, value in (("num_selected", num_selected), ("chunk_size", chunk_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.layers = nn.ModuleList(layers)
        self.score = nn.Linear(embed_dim, 1)
        self.num_selected = num_selected
        self.chunk_size = chunk_size
        self.scoring = scoring or Scoring()
        self._cache: WeightCache[PreparedCategories] = WeightCache()
        nn.init.xavier_uniform_(self.score.weight)
        # With 0.5 the loss of a vast vocabulary's absent categories would hide all others at first.
        nn.init.constant_(self.score.bias, prior_bias(START_PROBABILITY))

    def forward(
        self,
        queries: Tensor | PreparedCategories,
        tokens: ImageTokens,
        required: Tensor | None = None,
    ) -> SelectedCategories:
        """Select for each image.

        Args:
            queries: (C, D), those that all images share, or (B, C, D); or prepared ones, for which
                there is no gradient and `all_logits` is None.
            tokens: of the images.
            required: (B, C) bool, categories that come first whatever their scores; None for none.
                Prepared ones cannot be required.

        Raises:
            ValueError: there are fewer categories than are to be selected; or prepared ones are
                given in training or with `required`.
        """
        if isinstance(queries, PreparedCategories):
            if required is not None:
                raise ValueError("no prepared category can be required; give the queries")
            return self._select_prepared(queries, tokens)
        queries = queries[None] if queries.dim() == 2 else queries
        self.require_enough(queries.shape[1])
        context = self.context(tokens)
        if self.chunk_size is None or queries.shape[1] <= self.chunk_size:
            seen = self.see(queries, context)
            logits = self.logits(seen)
            indices = self.best(logits, required)
            chosen = gather_tokens(seen, indices)
        else:
            pieces = queries.split(self.chunk_size, dim=1)
            logits = torch.cat([self._piece_logits(piece, context) for piece in pieces], dim=1)
            indices = self.best(logits, required)
            chosen = self.see(_rows(queries, indices), context)
        return SelectedCategories(indices, chosen, logits.gather(1, indices), logits)

    def require_enough(self, num_categories: int) -> None:
        """Raise ValueError if there are fewer categories than are to be selected."""
        if num_categories < self.num_selected:
            raise ValueError(
                f"{self.num_selected} categories are to be selected of {num_categories}; lower the "
                "number of selected categories"
            )

    def prepared(self, make_queries: nn.Module) -> PreparedCategories:
        """Prepared categories, which are kept until a weight changes or training starts.

        Args:
            make_queries: gives the queries (C, D), without arguments.

        Raises:
            ValueError: in training.
        """
        self._require_inference()
        weights = chain(make_queries.parameters(), make_queries.buffers(), self.parameters())
        # Nothing that is kept may be marked as made in inference mode: it could not be used
        # outside.
        with torch.inference_mode(False), torch.no_grad():
            return self._cache.get(weights, lambda: self.prepare(make_queries()))

    def prepare(self, queries: Tensor) -> PreparedCategories:
        """What all images share of queries (C, D); good until a weight changes.

        Raises:
            ValueError: there are fewer categories than are to be selected.
        """
        self.require_enough(len(queries))
        return self.prepare_all(queries)

    @torch.no_grad()
    def prepare_all(self, queries: Tensor) -> PreparedCategories:
        """Queries (C, D) for scores of them all, whatever kind of selection this is."""
        layers = self.scoring_layers()
        states = queries.detach().to(next(layers.parameters()).dtype)
        projected = torch.empty_like(states)
        for piece, out in zip(
            states.split(self.scoring.chunk_size),
            projected.split(self.scoring.chunk_size),
            strict=True,
        ):
            out.copy_(layers[0].cross_attn.query_proj(piece))
        return PreparedCategories(queries.detach(), layers, states, projected)

    def scoring_layers(self) -> nn.ModuleList:
        """A copy of the layers in the precision of the scoring, for inference."""
        layers = copy.deepcopy(self.layers).eval().requires_grad_(False)
        return layers.to(self.scoring.dtype or self.score.weight.dtype)

    def drop_prepared(self) -> None:
        """Forget what `prepared` keeps."""
        self._cache.drop()

    def train(self, mode: bool = True) -> "CategorySelection":
        """Also forget what `prepared` keeps, if training starts."""
        if mode:
            self.drop_prepared()
        return super().train(mode)

    def candidates(
        self, categories: PreparedCategories, tokens: ImageTokens, context: ImageContext
    ) -> Tensor:
        """Those among which each image's selected ones are: (B, K + margin) int64, or all C."""
        num_best = min(self.num_selected + self.scoring.margin, len(categories.queries))
        images = one_by_one(categories, context)
        chosen = [
            best_categories(
                categories,
                image,
                self.score,
                num_best=num_best,
                chunk_size=self.scoring.chunk_size,
                among=self.shortlist(categories, tokens.values[i, ~tokens.padding_mask[i]]),
            )
            for i, image in enumerate(images)
        ]
        return torch.stack(chosen)

    @torch.no_grad()
    def score_all(self, categories: PreparedCategories, tokens: ImageTokens) -> Tensor:
        """The scores (B, C) of all prepared categories, in the precision of the scoring."""
        size, count = self.scoring.chunk_size, len(categories.queries)
        pieces = [slice(start, start + size) for start in range(0, count, size)]
        scores = [
            torch.cat([scores_of(categories, piece, image, self.score) for piece in pieces])
            for image in one_by_one(categories, self.context(tokens))
        ]
        return torch.stack(scores)

    def shortlist(self, categories: PreparedCategories, tokens: Tensor) -> Tensor | None:
        """The ids (N,) int64 of categories to score for one image; None for all.

        `tokens` are (S, M), without padding.
        """
        return None

    @torch.no_grad()
    def _select_prepared(
        self, categories: PreparedCategories, tokens: ImageTokens
    ) -> SelectedCategories:
        self._require_inference()
        context = self.context(tokens)
        candidates = self.candidates(categories, tokens, context)
        seen = self.see(F.embedding(candidates, categories.queries), context)
        logits = self.logits(seen)
        best = self.best(logits)
        return SelectedCategories(
            candidates.gather(1, best), gather_tokens(seen, best), logits.gather(1, best)
        )

    def _require_inference(self) -> None:
        if self.training:
            raise ValueError(
                "prepared categories are for inference, without gradients; call eval() first, or "
                "give the queries themselves"
            )

    def context(self, tokens: ImageTokens) -> ImageContext:
        """What `see` needs of the images."""
        pairs = [layer.cross_attn.keys_and_values(tokens.values) for layer in self.layers]
        keys, values = zip(*pairs, strict=True)
        return ImageContext(keys, values, tokens.padding_mask[:, None, None])

    def see(self, queries: Tensor, context: ImageContext) -> Tensor:
        """Any categories (B or 1, C, D) that look at the images, (B, C, D)."""
        for layer, keys, values in zip(self.layers, context.keys, context.values, strict=True):
            queries = layer(queries, keys, values, context.blocked)
        return queries

    def logits(self, seen: Tensor) -> Tensor:
        """The scores (B, C) of categories that have seen the images, (B, C, D)."""
        return self.score(seen).squeeze(-1)

    def best(self, logits: Tensor, required: Tensor | None = None) -> Tensor:
        """The K highest of scores (B, C), best first: (B, K) int64; see `forward`."""
        if required is not None:
            logits = logits.masked_fill(required, float("inf"))
        return logits.topk(self.num_selected, dim=1).indices

    def _piece_logits(self, piece: Tensor, context: ImageContext) -> Tensor:
        def compute(queries: Tensor) -> Tensor:
            return self.logits(self.see(queries, context))

        if torch.is_grad_enabled():
            return checkpoint(compute, piece, use_reentrant=False)
        return compute(piece)


def _rows(queries: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` (B, K) of queries (B or 1, C, D): (B, K, D)."""
    if queries.shape[0] == 1:
        # Shared rows are read where they lie: their gradient is then one (C, D), not one an image.
        return F.embedding(indices, queries[0])
    return gather_tokens(queries, indices)
