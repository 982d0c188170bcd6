# SPDX-License-Identifier: Apache-2.0
"""Selection among a vast number of categories in a time that hardly grows with it.

B images, C categories, K selected ones, N shortlisted ones, D channels of a category, S tokens of
an image, M channels of a token, E channels of keys.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.models.cq_dino.clustered_keys import ClusteredKeys
from vastdet.models.cq_dino.scoring import PreparedCategories
from vastdet.models.cq_dino.selection import (
    CategorySelection,
    ImageTokens,
    SelectedCategories,
)

# So many keys are compared with every token.
UNCLUSTERED = 4096
# Queries whose keys are computed at once.
CHUNK = 16384


@dataclass(frozen=True)
class Shortlist:
    """How many categories are looked at.

    Attributes:
        size: N, how many are scored.
        num_scanned: keys whose products are computed, in whole clusters; at least N.
    """

    size: int = 1000
    num_scanned: int = 32768

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.num_scanned:
            raise ValueError(
                f"a shortlist of size {self.size} from {self.num_scanned} scanned keys; expected "
                "1 <= size <= num_scanned"
            )

    def num_clusters(self, num_categories: int) -> int:
        """Clusters of about as many keys as there are clusters; one where these are few."""
        return 1 if num_categories <= UNCLUSTERED else round(num_categories**0.5)


class TokenMatch(nn.Module):
    """A cheap score: how well the best of an image's tokens matches the key of a category.

    Keys have length 1 and do not depend on the image, so that they can be clustered.
    """

    def __init__(self, embed_dim: int, context_dim: int, *, key_dim: int = 64) -> None:
        """`embed_dim` is D, `context_dim` is M, `key_dim` is E."""
        super().__init__()
        self.key_proj = nn.Linear(embed_dim, key_dim)
        self.token_norm = nn.LayerNorm(context_dim)
        self.token_proj = nn.Linear(context_dim, key_dim)

    def keys(self, queries: Tensor) -> Tensor:
        """Queries (C, D) to keys (C, E) of length 1."""
        return F.normalize(self.key_proj(queries), dim=-1)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Tokens (..., M) to vectors (..., E), whose lengths say how much a token matters."""
        vectors: Tensor = self.token_proj(self.token_norm(tokens))
        return vectors

    def forward(self, queries: Tensor, tokens: ImageTokens) -> Tensor:
        """The scores (B, C)."""
        products = self.vectors(tokens.values) @ self.keys(queries).T
        return products.masked_fill(tokens.padding_mask.unsqueeze(-1), float("-inf")).amax(1)


@dataclass(frozen=True)
class ShortlistedCategories(PreparedCategories):
    """Prepared categories of which only those that match an image are scored.

    Attributes:
        clusters: their keys.
    """

    clusters: ClusteredKeys | None = None


class ShortlistSelection(CategorySelection):
    """Scores only the N categories whose keys match an image best.

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
        """See `CategorySelection.prepare`; clustering a million keys takes seconds."""
        self.require_enough(len(queries))
        queries = queries.detach()
        keys = torch.cat([self.match.keys(piece) for piece in queries.split(CHUNK)])
        return ShortlistedCategories(
            queries,
            self.scoring_layers(),
            clusters=ClusteredKeys.of(keys, self.limits.num_clusters(len(keys))),
        )

    def shortlist(self, categories: PreparedCategories, tokens: Tensor) -> Tensor | None:
        """See `CategorySelection.shortlist`."""
        if not isinstance(categories, ShortlistedCategories) or categories.clusters is None:
            raise ValueError("these categories were prepared by another selection")
        if len(categories.queries) <= self.limits.size:
            return None
        return categories.clusters.best(
            self.match.vectors(tokens),
            num_best=self.limits.size,
            num_scanned=self.limits.num_scanned,
        )


def match_loss(scores: Tensor, logits: Tensor) -> Tensor:
    """How far cheap scores (B, C) are from logits (B, C): a scalar, 0 where they are as good.

    The divergence of their softmax over the categories, so that what scores highest counts most
    and scores that are low in both count nothing.
    """
    target = logits.float().log_softmax(-1)
    return F.kl_div(scores.float().log_softmax(-1), target, reduction="batchmean", log_target=True)


def fit_match(
    match: TokenMatch,
    queries: Tensor,
    batches: Sequence[tuple[ImageTokens, Tensor]],
    *,
    num_steps: int = 600,
    learning_rate: float = 3e-3,
) -> float:
    """Teach a match the scores of a trained selection; takes seconds once these are computed.

    Args:
        match: is changed in place.
        queries: (C, D).
        batches: tokens, and all logits (B, C) that the selection gives them; taken in turn.
        num_steps: batches that are learned from.
        learning_rate: the greatest; it rises for 30 % of the steps and falls to nothing.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    optimizer = torch.optim.AdamW(match.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps)
    losses = []
    for step in range(num_steps):
        tokens, logits = batches[step % len(batches)]
        loss = match_loss(match(queries, tokens), logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, num_steps // 10) :]
    return sum(last) / len(last)
