# SPDX-License-Identifier: Apache-2.0
"""What Relation-DETR changes in encoder and transformer (Hou et al., ECCV 2024).

B images, L levels of H x W cells, S tokens, C channels, N encoder layers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vastdet.detr.denoising import ContrastiveDenoising
from vastdet.detr.encoder import Encoder
from vastdet.detr.query_selection import TokenSelection, require_tokens
from vastdet.detr.query_source import MixedQueries
from vastdet.detr.structures import LayerPredictions, Queries, SetPredictions, Targets
from vastdet.detr.tokens import Tokens
from vastdet.detr.transformer import SetTransformer
from vastdet.layers.mlp import MLP
from vastdet.models.relation_detr.relation import PositionRelation


class FusedEncoder(Encoder):
    """An encoder whose result is made of the tokens before it and after each layer."""

    def __init__(self, layers: Iterable[nn.Module], embed_dim: int) -> None:
        """Take the N layers; `embed_dim` is C."""
        super().__init__(layers)
        num_inputs = (len(self.layers) + 1) * embed_dim
        self.fusion = MLP(num_inputs, embed_dim, embed_dim, 2)
        self.fusion_norm = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tokens) -> Tokens:
        """The tokens with the fused values."""
        references = tokens.cell_references()
        values = [tokens.values]
        for layer in self.layers:
            tokens = layer(tokens, references)
            values.append(tokens.values)
        return tokens.with_values(self.fusion_norm(self.fusion(torch.cat(values, dim=-1))))


class RelationTransformer(SetTransformer):
    """Relates the boxes of the queries; in training decodes one-to-many queries without that.

    The one-to-many queries are chosen by heads of their own from the same candidates, and go
    through the same decoder in a pass of their own.
    """

    def __init__(
        self,
        *,
        to_tokens: nn.Module,
        encoder: nn.Module,
        query_source: MixedQueries,
        decoder: nn.Module,
        relation: PositionRelation,
        denoising: ContrastiveDenoising | None = None,
        one_to_many_source: MixedQueries | None = None,
    ) -> None:
        """Put the parts together; see `SetTransformer`.

        Args:
            to_tokens: as there.
            encoder: as there.
            query_source: with a `TokenSelection`, which makes the candidates of both branches.
            decoder: maps queries, tokens and a relation or None to the predictions of its layers.
            relation: of the boxes of two layers.
            denoising: as there.
            one_to_many_source: with a `HeadSelection`; None for no such branch.
        """
        super().__init__(
            to_tokens=to_tokens,
            encoder=encoder,
            query_source=query_source,
            decoder=decoder,
            denoising=denoising,
        )
        self.relation = relation
        self.one_to_many_source = one_to_many_source

    def forward(
        self,
        levels: Sequence[Tensor],
        padding_masks: Sequence[Tensor],
        targets: Targets | None = None,
    ) -> SetPredictions:
        """Predict; see `SetTransformer.forward`.

        Raises:
            ValueError: there are fewer tokens than queries of a branch.
        """
        memory = self.encoder(self.to_tokens(levels, padding_masks))
        source = self.query_source
        assert isinstance(source, MixedQueries)
        assert isinstance(source.selection, TokenSelection)
        candidates = source.selection.candidates(memory)
        queries, proposals = source.start_from(source.selection.best(*candidates, memory))
        predictions = self.decode(queries, memory, proposals, targets)
        if targets is None or self.one_to_many_source is None:
            return predictions
        selection = self.one_to_many_source.selection
        require_tokens(memory, selection.num_queries)
        queries, proposals = self.one_to_many_source.start_from(selection.best(*candidates, memory))
        hybrid = SetPredictions(self.decoder(queries, memory), proposals)
        return replace(predictions, hybrid=hybrid)

    def run_decoder(self, queries: Queries, memory: Tokens) -> LayerPredictions:
        """The predictions of the decoder, with relation."""
        layers: LayerPredictions = self.decoder(queries, memory, self.relation)
        return layers
