# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder layers with dense attention: tokens and queries see all tokens.

B images, S tokens, Q queries, C channels.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vastdet.detr.decoder import DecoderLayer, QuerySelfAttention, QueryState
from vastdet.detr.encoder import Encoder, EncoderLayer
from vastdet.detr.tokens import Tokens
from vastdet.layers.attention import MultiheadAttention
from vastdet.layers.mlp import FeedForward


class DenseSelfAttention(MultiheadAttention):
    """Each cell looks at all cells that are not padding (Carion et al. 2020, section 3.2)."""

    def forward(self, tokens: Tokens, references: Tensor) -> Tensor:  # type: ignore[override]
        """Features (B, S, C); the cells' references do not matter."""
        query = tokens.values + tokens.positions
        return super().forward(query, query, tokens.values, blocked=blocked_keys(tokens))


class DenseCrossAttention(MultiheadAttention):
    """Queries look at all cells that are not padding; positions count for who looks where."""

    def forward(self, state: QueryState, memory: Tokens) -> Tensor:  # type: ignore[override]
        """(B, Q, C)."""
        key = memory.values + memory.positions
        return super().forward(state.positioned, key, memory.values, blocked=blocked_keys(memory))


def blocked_keys(tokens: Tokens) -> Tensor:
    """(B, 1, 1, S) bool, True at padding; the first cell of an image never is."""
    return tokens.padding_mask[:, None, None]


def dense_encoder_layers(
    num_layers: int,
    *,
    embed_dim: int,
    num_heads: int,
    feedforward_dim: int,
    dropout: float = 0.0,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> list[EncoderLayer]:
    """Layers of dense self-attention; `dropout` acts on attention weights too."""
    return [
        EncoderLayer(
            DenseSelfAttention(embed_dim, num_heads, dropout=dropout),
            FeedForward(embed_dim, feedforward_dim, dropout=dropout, activation=activation),
            embed_dim=embed_dim,
            dropout=dropout,
        )
        for _ in range(num_layers)
    ]


def dense_encoder(num_layers: int, **sizes: Any) -> Encoder:
    """A stack of `dense_encoder_layers`."""
    return Encoder(dense_encoder_layers(num_layers, **sizes))


def dense_decoder_layer(
    *, embed_dim: int, num_heads: int, feedforward_dim: int, dropout: float = 0.0
) -> DecoderLayer:
    """Dense attention among queries, then to the tokens; `dropout` acts on its weights too."""
    return DecoderLayer(
        QuerySelfAttention(embed_dim, num_heads, dropout=dropout),
        DenseCrossAttention(embed_dim, num_heads, dropout=dropout),
        FeedForward(embed_dim, feedforward_dim, dropout=dropout),
        embed_dim=embed_dim,
        dropout=dropout,
    )
