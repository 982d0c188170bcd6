# SPDX-License-Identifier: Apache-2.0
"""The transformer of a set-prediction detector: tokens, encoder, queries, decoder, given as parts.

B images, L levels of H x W cells, S tokens, Q queries, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vastdet.detr.denoising import Denoising, join_queries
from vastdet.detr.structures import (
    DenoisingPredictions,
    DenoisingQueries,
    LayerPredictions,
    Queries,
    SetPredictions,
    Targets,
)
from vastdet.detr.tokens import Tokens, flatten_maps
from vastdet.layers.positions import SinePositionEncoding


class MapsToTokens(nn.Module):
    """Makes the cells of maps tokens, with the sine encoding of where each cell is."""

    def __init__(self, position_encoding: SinePositionEncoding) -> None:
        """Take the encoding, of the maps' width C."""
        super().__init__()
        self.position_encoding = position_encoding

    def forward(self, levels: Sequence[Tensor], padding_masks: Sequence[Tensor]) -> Tokens:
        """Levels (B, C, H, W) and their masks (B, H, W), True at padding, to tokens."""
        return flatten_maps(levels, padding_masks, self.positions(levels, padding_masks))

    def positions(self, levels: Sequence[Tensor], padding_masks: Sequence[Tensor]) -> list[Tensor]:
        """(B, H, W, C) of each level."""
        return [
            self.position_encoding(mask).to(level.dtype)
            for level, mask in zip(levels, padding_masks, strict=True)
        ]


class LevelsToTokens(MapsToTokens):
    """Adds to the position of a cell a learned embedding of its level (Zhu et al. 2021, 4.1)."""

    def __init__(
        self, position_encoding: SinePositionEncoding, *, embed_dim: int, num_levels: int
    ) -> None:
        """`embed_dim` is C, `num_levels` L."""
        super().__init__(position_encoding)
        self.level_embedding = nn.Parameter(torch.randn(num_levels, embed_dim))

    def positions(self, levels: Sequence[Tensor], padding_masks: Sequence[Tensor]) -> list[Tensor]:
        """(B, H, W, C) of each level."""
        cells = super().positions(levels, padding_masks)
        return [
            cell + embedding.to(cell.dtype)
            for cell, embedding in zip(cells, self.level_embedding, strict=True)
        ]


class SetTransformer(nn.Module):
    """Encodes the maps, asks a query source for queries, and decodes them.

    The parts:
        to_tokens: maps levels (B, C, H, W) and masks (B, H, W) to `Tokens`.
        encoder: maps tokens to tokens.
        query_source: maps the encoded tokens to `Queries` and to the `LayerPredictions` of a
            proposal stage, None where there is none; see `vastdet.detr.query_source`.
        decoder: maps queries and tokens to the `LayerPredictions` of its layers.
        denoising: adds queries made from ground truth in training, or None.
    """

    def __init__(
        self,
        *,
        to_tokens: nn.Module,
        encoder: nn.Module,
        query_source: nn.Module,
        decoder: nn.Module,
        denoising: Denoising | None = None,
    ) -> None:
        """Put the parts together."""
        super().__init__()
        self.to_tokens = to_tokens
        self.encoder = encoder
        self.query_source = query_source
        self.decoder = decoder
        self.denoising = denoising

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
        return self.predict(self.encoder(self.to_tokens(levels, padding_masks)), targets)

    def predict(self, memory: Tokens, targets: Targets | None = None) -> SetPredictions:
        """Predict from the encoded tokens; `targets` as in `forward`."""
        queries, proposals = self.query_source(memory)
        return self.decode(queries, memory, proposals, targets)

    def decode(
        self,
        queries: Queries,
        memory: Tokens,
        proposals: LayerPredictions | None,
        targets: Targets | None,
    ) -> SetPredictions:
        """Predict from the queries; members with further branches override it."""
        if self.denoising is None or targets is None:
            return SetPredictions(self.run_decoder(queries, memory), proposals)
        extra = self.denoise(targets, queries.content.shape[1], memory)
        layers = self.run_decoder(join_queries(extra, queries), memory)
        start = extra.matched.shape[1]
        return SetPredictions(
            layers.queries(start),
            proposals,
            DenoisingPredictions(layers.queries(0, start), extra),
        )

    def denoise(self, targets: Targets, num_matching: int, memory: Tokens) -> DenoisingQueries:
        """The denoising queries; members whose denoising reads more override it."""
        assert self.denoising is not None
        queries: DenoisingQueries = self.denoising(targets, num_matching=num_matching)
        return queries

    def run_decoder(self, queries: Queries, memory: Tokens) -> LayerPredictions:
        """The decoder's predictions; members whose decoder reads more override it."""
        layers: LayerPredictions = self.decoder(queries, memory)
        return layers
