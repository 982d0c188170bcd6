# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder layers with multi-scale deformable attention (Zhu et al., ICLR 2021)."""

from collections.abc import Callable

from vastdet.detr.decoder import DecoderLayer, DeformableCrossAttention, QuerySelfAttention
from vastdet.detr.encoder import DeformableSelfAttention, Encoder, EncoderLayer
from vastdet.layers.mlp import FeedForward


def deformable_encoder(
    num_layers: int,
    *,
    embed_dim: int,
    num_heads: int,
    num_levels: int,
    num_points: int,
    feedforward_dim: int,
    dropout: float = 0.0,
) -> Encoder:
    """Layers of multi-scale deformable self-attention (Zhu et al. 2021, section 4.1)."""
    return Encoder(
        EncoderLayer(
            DeformableSelfAttention(
                embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
            ),
            FeedForward(embed_dim, feedforward_dim, dropout=dropout),
            embed_dim=embed_dim,
            dropout=dropout,
        )
        for _ in range(num_layers)
    )


def deformable_decoder_layer(
    *,
    embed_dim: int,
    num_heads: int,
    num_levels: int,
    num_points: int,
    feedforward_dim: int,
    dropout: float = 0.0,
    layer: Callable[..., DecoderLayer] = DecoderLayer,
) -> DecoderLayer:
    """Dense self-attention of queries, deformable cross-attention to the tokens.

    `layer` puts the parts together.
    """
    return layer(
        QuerySelfAttention(embed_dim, num_heads, dropout=dropout),
        DeformableCrossAttention(
            embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        ),
        FeedForward(embed_dim, feedforward_dim, dropout=dropout),
        embed_dim=embed_dim,
        dropout=dropout,
    )
