# SPDX-License-Identifier: Apache-2.0
"""The transformer of two-stage deformable detectors: encoder, query selection, decoder.

B images, L levels, S tokens, Q queries, C channels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vastdet.detr.decoder import DecoderLayer, DeformableCrossAttention, QuerySelfAttention
from vastdet.detr.denoising import ContrastiveDenoising, join_queries
from vastdet.detr.encoder import DeformableSelfAttention, Encoder, EncoderLayer
from vastdet.detr.structures import DenoisingPredictions, Queries, SetPredictions, Targets
from vastdet.detr.tokens import flatten_maps
from vastdet.layers.mlp import FeedForward
from vastdet.layers.positions import SinePositionEncoding


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
) -> DecoderLayer:
    """Dense self-attention of queries, deformable cross-attention to the tokens."""
    return DecoderLayer(
        QuerySelfAttention(embed_dim, num_heads, dropout=dropout),
        DeformableCrossAttention(
            embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        ),
        FeedForward(embed_dim, feedforward_dim, dropout=dropout),
        embed_dim=embed_dim,
        dropout=dropout,
    )


class TwoStageTransformer(nn.Module):
    """Encodes the levels, selects tokens as reference boxes, and decodes learned contents there.

    DINO's mixed query selection: where a query looks comes from the image, what it looks for is
    learned. `denoising`, where given, adds queries made from ground truth in training.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_levels: int,
        num_queries: int,
        position_encoding: SinePositionEncoding,
        encoder: Encoder,
        selection: nn.Module,
        decoder: nn.Module,
        denoising: ContrastiveDenoising | None = None,
    ) -> None:
        """Put the parts together."""
        super().__init__()
        self.position_encoding = position_encoding
        self.level_embedding = nn.Parameter(torch.randn(num_levels, embed_dim))
        self.encoder = encoder
        self.selection = selection
        self.query_content = nn.Embedding(num_queries, embed_dim)
        self.denoising = denoising
        self.decoder = decoder

    def forward(
        self,
        levels: Sequence[Tensor],
        padding_masks: Sequence[Tensor],
        targets: Targets | None = None,
    ) -> SetPredictions:
        """Predict.

        Args:
            levels: (B, C, H, W) of each level.
            padding_masks: (B, H, W) bool of each level, True at padding.
            targets: in training; makes the denoising queries.
        """
        positions = [
            self.position_encoding(mask).to(level.dtype) + embedding
            for level, mask, embedding in zip(
                levels, padding_masks, self.level_embedding, strict=True
            )
        ]
        memory = self.encoder(flatten_maps(levels, padding_masks, positions))
        selected = self.selection(memory)
        content = self.query_content.weight.expand(len(levels[0]), -1, -1)
        queries = Queries(content, selected.boxes)
        if self.denoising is None or targets is None:
            return SetPredictions(self.decoder(queries, memory), selected.predictions)
        extra = self.denoising(targets, num_matching=content.shape[1])
        layers = self.decoder(join_queries(extra, queries), memory)
        start = extra.matched.shape[1]
        return SetPredictions(
            layers.queries(start),
            selected.predictions,
            DenoisingPredictions(layers.queries(0, start), extra),
        )


def per_layer(make: Callable[[], nn.Module], num_layers: int, *, shared: bool) -> list[nn.Module]:
    """One module for all layers, or one for each."""
    return [make() for _ in range(1 if shared else num_layers)]
