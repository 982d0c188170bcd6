# SPDX-License-Identifier: Apache-2.0
"""The rank-oriented architecture of Rank-DETR (Pu et al., NeurIPS 2023).

After each decoder layer the queries are put in the order of their scores, so that what is learned
for the first row is learned for the most confident query.

B images, Q queries, of these the first M one-to-one, C channels, K classes.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vastdet.detr.decoder import Decoder
from vastdet.detr.query_selection import gather_tokens
from vastdet.detr.refinement import References
from vastdet.detr.structures import Queries


class RankAdaptiveHead(nn.Module):
    """Class logits to which each rank adds learned ones of its own, zero at the start."""

    def __init__(self, linear: nn.Linear, num_queries: int) -> None:
        """`linear` maps (..., C) to K logits; `num_queries` is the largest Q."""
        super().__init__()
        self.linear = linear
        self.rank_logits = nn.Embedding(num_queries, linear.out_features)
        nn.init.zeros_(self.rank_logits.weight)

    def forward(self, content: Tensor) -> Tensor:
        """Queries (B, Q, C), best first, to logits (B, Q, K)."""
        logits: Tensor = self.linear(content)
        return logits + self.rank_logits.weight[: content.shape[1]]


class RankContent(nn.Module):
    """Mixes into the contents of ranked queries what is learned for each rank.

    The authors' decoder sets the ranks' contents to zero, but their transformer then draws them
    anew with all its weights; they start as there.
    """

    def __init__(self, embed_dim: int, num_queries: int) -> None:
        """`embed_dim` is C, `num_queries` the largest Q."""
        super().__init__()
        self.content = nn.Embedding(num_queries, embed_dim)
        self.transform = nn.Linear(embed_dim, embed_dim)
        self.join = nn.Linear(2 * embed_dim, embed_dim)
        for module in (self.content, self.transform, self.join):
            nn.init.xavier_uniform_(module.weight)

    def forward(self, content: Tensor) -> Tensor:
        """Contents (B, Q, C), best first, to new ones."""
        of_rank = self.transform(self.content.weight[: content.shape[1]])
        return self.join(torch.cat([content, of_rank.expand_as(content)], dim=-1))


class RankingDecoder(Decoder):
    """A decoder that puts the queries in the order of their scores after each layer.

    One-to-one queries and the one-to-many ones after them are ordered each among themselves. The
    predictions of a layer are in the order in which it read the queries.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        *,
        rank_contents: Iterable[nn.Module],
        num_one_to_one: int,
        **parts: Any,
    ) -> None:
        """Put the parts together.

        Args:
            layers: see `Decoder`.
            rank_contents: modules such as `RankContent`, one for each layer but the first.
            num_one_to_one: M.
            parts: see `Decoder`; class heads are `RankAdaptiveHead`, positions come with the
                queries.
        """
        super().__init__(layers, **parts)
        self.rank_contents = nn.ModuleList(rank_contents)
        self.num_one_to_one = num_one_to_one

    def hand_on(
        self, queries: Queries, content: Tensor, references: References, layer: int
    ) -> tuple[Queries, Tensor, References]:
        """The same queries, best first, their contents with those of their ranks."""
        order = self.ranked(self.scores(content, layer))
        assert queries.position is not None
        queries = replace(queries, position=gather_tokens(queries.position, order))
        references = References(
            gather_tokens(references.detached, order),
            gather_tokens(references.with_gradient, order),
        )
        return queries, self.rank_contents[layer](gather_tokens(content, order)), references

    @torch.no_grad()
    def scores(self, content: Tensor, layer: int) -> Tensor:
        """(B, Q): the highest class probability of each query, whatever its rank was."""
        head = self.class_head(layer)
        assert isinstance(head, RankAdaptiveHead)
        return head.linear(self.norm(content)).sigmoid().amax(dim=-1)

    def ranked(self, scores: Tensor) -> Tensor:
        """(B, Q) int64: which query of scores (B, Q) comes first, second, ... in its group."""
        start = self.num_one_to_one
        one_to_one = scores[:, :start].argsort(dim=1, descending=True)
        one_to_many = scores[:, start:].argsort(dim=1, descending=True)
        return torch.cat([one_to_one, one_to_many + start], dim=1)
