# SPDX-License-Identifier: Apache-2.0
"""Selection among a vast number of categories in a time that hardly grows with it.

B images, C categories, K selected ones, N shortlisted ones, D channels of a category, S tokens of
an image, M channels of a token, E channels of keys.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.models.cq_dino.key_index import CHANNELS_PER_CODE, KeyIndex
from vastdet.models.cq_dino.scoring import PreparedCategories
from vastdet.models.cq_dino.selection import (
    CategorySelection,
    ImageTokens,
    SelectedCategories,
)

# So many keys are compared with every vector.
UNINDEXED = 4096
# Queries whose keys are computed at once.
CHUNK = 16384
# Channels of the layer between a query and its key.
KEY_HIDDEN_DIM = 512
# Logits of a vector's attention are this many times what its layer gives, so that it learns early
# to look at few tokens.
SHARPNESS = 4.0


@dataclass(frozen=True)
class Shortlist:
    """How many categories are looked at.

    Attributes:
        size: N, how many are scored at most.
        num_scanned: keys that each vector of an image is compared with, about; at least N.
    """

    size: int = 700
    num_scanned: int = 32768

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.num_scanned:
            raise ValueError(
                f"a shortlist of size {self.size} from {self.num_scanned} scanned keys; expected "
                "1 <= size <= num_scanned"
            )

    def num_each(self, num_vectors: int, num_needed: int) -> int:
        """How many candidates each vector brings: 0.3 of the list, more if vectors are few."""
        return max(num_needed, round(0.3 * self.size), math.ceil(self.size / num_vectors))


class TokenMatch(nn.Module):
    """A cheap score: how well the best of an image's vectors matches the key of a category.

    Each of P vectors pools the tokens by weights of its own, which say what it looks for, and says
    by its length how much it matters. Keys have length 1 and do not depend on the image, so that
    they can be indexed, and what a layer more costs for them does not matter.
    """

    def __init__(
        self, embed_dim: int, context_dim: int, *, key_dim: int = 64, num_vectors: int = 32
    ) -> None:
        """`embed_dim` is D, `context_dim` is M, `key_dim` is E, `num_vectors` is P.

        Raises:
            ValueError: E is odd, or E or P below 1.
        """
        super().__init__()
        if key_dim < 2 or key_dim % CHANNELS_PER_CODE or num_vectors < 1:
            raise ValueError(
                f"a match of {num_vectors} vectors and keys of {key_dim} channels; expected 1 or "
                "more vectors, and an even number of channels, whose pairs are coded "
                "(MODEL.CQ_DINO.SELECTION.SHORTLIST.NUM_VECTORS and KEY_DIM)"
            )
        hidden_dim = 2 * context_dim
        self.key_proj = nn.Linear(embed_dim, key_dim)
        self.key_mlp = nn.Sequential(
            nn.Linear(embed_dim, KEY_HIDDEN_DIM), nn.GELU(), nn.Linear(KEY_HIDDEN_DIM, key_dim)
        )
        self.token_norm = nn.LayerNorm(context_dim)
        self.pooling = nn.Linear(context_dim, num_vectors)
        self.hidden_proj = nn.Linear(context_dim, hidden_dim)
        self.vector_bias = nn.Parameter(0.1 * torch.randn(num_vectors, hidden_dim))
        self.vector_proj = nn.Linear(hidden_dim, key_dim)

    def keys(self, queries: Tensor) -> Tensor:
        """Queries (..., C, D) to keys (..., C, E) of length 1."""
        return F.normalize(self.key_proj(queries) + self.key_mlp(queries), dim=-1)

    def vectors(self, tokens: ImageTokens) -> Tensor:
        """The vectors (B, P, E) of images."""
        values = self.token_norm(tokens.values)
        logits = SHARPNESS * self.pooling(values)
        weights = logits.masked_fill(tokens.padding_mask.unsqueeze(-1), float("-inf")).softmax(1)
        hidden = self.hidden_proj(weights.transpose(1, 2) @ values) + self.vector_bias
        vectors: Tensor = self.vector_proj(F.gelu(hidden))
        return vectors

    def forward(self, queries: Tensor, tokens: ImageTokens) -> Tensor:
        """The scores (B, C) of queries (C, D) or (B, C, D)."""
        return (self.vectors(tokens) @ self.keys(queries).mT).amax(1)


@dataclass(frozen=True)
class ShortlistedCategories(PreparedCategories):
    """Prepared categories of which only those that match an image are scored.

    Attributes:
        keys: (C, E), where these are few; else None.
        index: of the keys, where they are many; else None.
    """

    keys: Tensor | None = None
    index: KeyIndex | None = None


class ShortlistSelection(CategorySelection):
    """Scores only the N categories, at most, whose keys match an image best.

    Training computes all scores, as without a shortlist, and adds `loss_shortlist` to the result:
    the match learns the order of the scores. Neither scores nor queries nor tokens get a gradient
    from it, so that the rest trains as it would alone. With the queries themselves, all are scored
    at inference too; prepared categories go by the shortlist.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        match: TokenMatch,
        *,
        shortlist: Shortlist | None = None,
        **settings: Any,
    ) -> None:
        """Take the parts.

        Args:
            layers: see `CategorySelection`.
            match: scores cheaply.
            shortlist: its size; None for `Shortlist()`.
            settings: see `CategorySelection`.

        Raises:
            ValueError: fewer are shortlisted than are to be selected.
        """
        super().__init__(layers, **settings)
        self.match = match
        self.limits = shortlist or Shortlist()
        needed = self.num_selected + self.scoring.margin
        if self.limits.size < needed:
            raise ValueError(
                f"a shortlist of {self.limits.size} for {self.num_selected} selected categories "
                f"and a margin of {self.scoring.margin}; it must hold {needed} or more"
            )

    def forward(
        self,
        queries: Tensor | PreparedCategories,
        tokens: ImageTokens,
        required: Tensor | None = None,
    ) -> SelectedCategories:
        """See `CategorySelection.forward`."""
        selected = super().forward(queries, tokens, required)
        if not self.training or isinstance(queries, PreparedCategories):
            return selected
        assert selected.all_logits is not None
        detached = ImageTokens(tokens.values.detach(), tokens.padding_mask)
        scores = self.match(queries.detach(), detached)
        loss = match_loss(scores, selected.all_logits.detach())
        return replace(selected, losses={"loss_shortlist": loss})

    @torch.no_grad()
    def prepare(self, queries: Tensor) -> ShortlistedCategories:
        """See `CategorySelection.prepare`; to index a million keys takes ten seconds."""
        self.require_enough(len(queries))
        queries = queries.detach()
        keys = torch.cat([self.match.keys(piece) for piece in queries.split(CHUNK)])
        if len(keys) <= UNINDEXED:
            return ShortlistedCategories(queries, self.scoring_layers(), keys=keys)
        # About as many lists as each holds keys.
        index = KeyIndex.of(keys, round(len(keys) ** 0.5))
        return ShortlistedCategories(queries, self.scoring_layers(), index=index)

    def shortlist(self, categories: PreparedCategories, tokens: Tensor) -> Tensor | None:
        """See `CategorySelection.shortlist`."""
        if not isinstance(categories, ShortlistedCategories):
            raise ValueError("these categories were prepared by another selection")
        size = self.limits.size
        if len(categories.queries) <= size:
            return None
        no_padding = torch.zeros(1, len(tokens), dtype=torch.bool, device=tokens.device)
        vectors = self.match.vectors(ImageTokens(tokens[None], no_padding))[0]
        if categories.index is None:
            assert categories.keys is not None
            return (vectors @ categories.keys.T).amax(0).topk(size).indices
        num_needed = self.num_selected + self.scoring.margin
        return categories.index.best(
            vectors,
            num_best=size,
            num_each=self.limits.num_each(len(vectors), num_needed),
            num_scanned=self.limits.num_scanned,
            num_needed=num_needed,
        )


def match_loss(scores: Tensor, logits: Tensor) -> Tensor:
    """How far cheap scores (B, C) are from logits (B, C): a scalar, 0 where they are as good.

    The divergence of their softmax over the categories, so that what scores highest counts most
    and scores that are low in both count nothing.
    """
    target = logits.float().log_softmax(-1)
    return F.kl_div(scores.float().log_softmax(-1), target, reduction="batchmean", log_target=True)
