# SPDX-License-Identifier: Apache-2.0
"""Attention that compares contents and places apart (Meng et al. 2021, Conditional DETR, 3.3).

B images, S tokens, Q queries, C channels, H heads. Boxes are CXCYWH as shares of the image, points
their first two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vastdet.detr.decoder import Decoder, DecoderLayer, QueryState
from vastdet.detr.dense import blocked_keys
from vastdet.detr.query_position import box_sine_features
from vastdet.detr.refinement import References
from vastdet.detr.structures import Queries
from vastdet.detr.tokens import Tokens
from vastdet.layers.attention import attend
from vastdet.layers.mlp import FeedForward, xavier_mlp
from vastdet.layers.precision import at_least_float32


@dataclass(frozen=True, kw_only=True)
class ConditionalState(QueryState):
    """Queries that also say where to look.

    Attributes:
        spatial: (B, Q, C), compared with the positions of the tokens, apart from the content.
    """

    spatial: Tensor


class ProjectedAttention(nn.Module):
    """The base of attentions whose contents and places are projected apart."""

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        """`dropout` acts on the attention weights in training."""
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_content = projection(embed_dim)
        self.key_content = projection(embed_dim)
        self.key_position = projection(embed_dim)
        self.value = projection(embed_dim)
        self.out_proj = projection(embed_dim)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **masks: Tensor | None) -> Tensor:
        """See `vastdet.layers.attention.attend`; then the last projection."""
        dropout = self.dropout if self.training else 0.0
        seen = attend(query, key, value, num_heads=self.num_heads, dropout=dropout, **masks)
        return self.out_proj(seen)


class ConditionalSelfAttention(ProjectedAttention):
    """Queries look at each other by the sum of what content and position give."""

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        """See `ProjectedAttention`."""
        super().__init__(embed_dim, num_heads, dropout=dropout)
        self.query_position = projection(embed_dim)

    def forward(self, state: QueryState) -> Tensor:
        """(B, Q, C)."""
        query = self.query_content(state.content) + self.query_position(state.position)
        key = self.key_content(state.content) + self.key_position(state.position)
        value = self.value(state.content)
        return self.attend(query, key, value, blocked=state.blocked, bias=state.bias)


class ConditionalCrossAttention(ProjectedAttention):
    """Queries look at all cells by content and place: in each head both lie side by side.

    So the logit of a pair is the sum of how well the contents fit and how well the places fit.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        """See `ProjectedAttention`."""
        super().__init__(embed_dim, num_heads, dropout=dropout)
        self.query_spatial = projection(embed_dim)

    def forward(self, state: ConditionalState, memory: Tokens) -> Tensor:
        """(B, Q, C)."""
        key_position = self.key_position(memory.positions)
        query, key = self.contents(state, memory, key_position)
        query = side_by_side(query, self.query_spatial(state.spatial), self.num_heads)
        key = side_by_side(key, key_position, self.num_heads)
        return self.attend(query, key, self.value(memory.values), blocked=blocked_keys(memory))

    def contents(
        self, state: ConditionalState, memory: Tokens, key_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The halves that compare contents: (B, Q, C) of the queries, (B, S, C) of the tokens."""
        return self.query_content(state.content), self.key_content(memory.values)


class FirstConditionalCrossAttention(ConditionalCrossAttention):
    """That of the first layer, whose contents say nothing yet: positions join them, as in DETR."""

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        """See `ProjectedAttention`."""
        super().__init__(embed_dim, num_heads, dropout=dropout)
        self.query_position = projection(embed_dim)

    def contents(
        self, state: ConditionalState, memory: Tokens, key_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `ConditionalCrossAttention.contents`."""
        query, key = super().contents(state, memory, key_position)
        return query + self.query_position(state.position), key + key_position


class SpatialQuery(nn.Module):
    """Where to look: the sine features of the centre, scaled channel by channel.

    The scale follows from the content; there is none in the first layer (Meng et al. 2021, 3.3).
    """

    def __init__(self, embed_dim: int) -> None:
        """`embed_dim` is C, a multiple of 4."""
        super().__init__()
        self.num_features = embed_dim // 2
        self.scale = xavier_mlp(embed_dim, embed_dim, embed_dim, 2)

    def forward(self, boxes: Tensor, content: Tensor, layer: int) -> Tensor:
        """Boxes (B, Q, 4 or 2) and contents (B, Q, C) to (B, Q, C)."""
        features = box_sine_features(boxes[..., :2], self.num_features).to(content.dtype)
        return features if layer == 0 else features * self.scale(content)


class SizedSpatialQuery(SpatialQuery):
    """Looks more narrowly for a narrow box, and at a lower height for a low one.

    The features of x are multiplied by a width that the content asks for, as a share of the box's
    width, those of y likewise (Liu et al. 2022, DAB-DETR, section 4.4).
    """

    def __init__(self, embed_dim: int) -> None:
        """`embed_dim` is C, a multiple of 4."""
        super().__init__(embed_dim)
        self.size_head = xavier_mlp(embed_dim, embed_dim, 2, 2)

    def forward(self, boxes: Tensor, content: Tensor, layer: int) -> Tensor:
        """Boxes (B, Q, 4) and contents (B, Q, C) to (B, Q, C)."""
        ratios = at_least_float32(self.size_head(content)).sigmoid() / boxes[..., 2:]
        # The features of y come first.
        modulation = ratios.flip(-1).repeat_interleave(self.num_features, dim=-1)
        return super().forward(boxes, content, layer) * modulation.to(content.dtype)


class ConditionalDecoder(Decoder):
    """A decoder whose queries also carry where to look.

    `spatial_query` maps reference boxes, contents and the index of the layer to (B, Q, C).
    """

    def __init__(
        self, layers: list[DecoderLayer], *, spatial_query: nn.Module, **parts: Any
    ) -> None:
        """`parts` are those of `Decoder`."""
        super().__init__(layers, **parts)
        self.spatial_query = spatial_query

    def query_state(
        self,
        queries: Queries,
        content: Tensor,
        references: References,
        layer: int,
        memory: Tokens,
    ) -> ConditionalState:
        """See `Decoder.query_state`."""
        state = super().query_state(queries, content, references, layer, memory)
        spatial = self.spatial_query(state.boxes, content, layer)
        return ConditionalState(
            state.content, state.position, state.boxes, state.blocked, spatial=spatial
        )


def projection(embed_dim: int) -> nn.Linear:
    """A linear layer (..., C) to the same."""
    layer = nn.Linear(embed_dim, embed_dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def side_by_side(content: Tensor, place: Tensor, num_heads: int) -> Tensor:
    """Two (B, Q, C) as (B, Q, 2C): in each head's channels first the content, then the place."""
    halves = [x.unflatten(-1, (num_heads, -1)) for x in (content, place)]
    return torch.cat(halves, dim=-1).flatten(-2)


def conditional_decoder_layers(
    num_layers: int,
    *,
    embed_dim: int,
    num_heads: int,
    feedforward_dim: int,
    dropout: float = 0.0,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> list[DecoderLayer]:
    """Layers of conditional attention; `dropout` acts on attention weights too."""
    return [
        DecoderLayer(
            ConditionalSelfAttention(embed_dim, num_heads, dropout=dropout),
            (ConditionalCrossAttention if i else FirstConditionalCrossAttention)(
                embed_dim, num_heads, dropout=dropout
            ),
            FeedForward(embed_dim, feedforward_dim, dropout=dropout, activation=activation),
            embed_dim=embed_dim,
            dropout=dropout,
        )
        for i in range(num_layers)
    ]
