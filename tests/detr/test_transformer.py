# SPDX-License-Identifier: Apache-2.0
"""The transformer with stand-in parts: positions of levels, branches, and who gets which query."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from vastdet.detr.denoising import ContrastiveDenoising
from vastdet.detr.structures import LayerPredictions, Queries, Targets
from vastdet.detr.tokens import Tokens
from vastdet.detr.transformer import LevelsToTokens, MapsToTokens, SetTransformer
from vastdet.layers.positions import SinePositionEncoding

WIDTH, NUM_QUERIES = 8, 4
LEVELS = [torch.randn(2, WIDTH, 4, 6), torch.randn(2, WIDTH, 2, 3)]
MASKS = [torch.zeros(2, 4, 6, dtype=torch.bool), torch.zeros(2, 2, 3, dtype=torch.bool)]


class FixedQueries(nn.Module):
    """A source without a proposal stage."""

    def forward(self, memory: Tokens) -> tuple[Queries, None]:
        content = torch.arange(NUM_QUERIES * WIDTH).float().view(1, NUM_QUERIES, WIDTH)
        return Queries(content.expand(2, -1, -1), torch.full((2, NUM_QUERIES, 4), 0.5)), None


class Echo(nn.Module):
    """A decoder of two layers that gives back the contents and boxes that it got."""

    def forward(self, queries: Queries, memory: Tokens) -> LayerPredictions:
        self.seen = queries
        return LayerPredictions(
            queries.content.expand(2, -1, -1, -1), queries.boxes.expand(2, -1, -1, -1)
        )


def transformer(denoising: ContrastiveDenoising | None = None) -> SetTransformer:
    return SetTransformer(
        to_tokens=MapsToTokens(SinePositionEncoding(WIDTH)),
        encoder=nn.Identity(),
        query_source=FixedQueries(),
        decoder=Echo(),
        denoising=denoising,
    )


def targets(counts: tuple[int, int]) -> Targets:
    images = []
    for count in counts:
        image = Instances((40, 60))
        image.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 20.0, 30.0]]).repeat(count, 1))
        image.gt_classes = torch.ones(count, dtype=torch.int64)
        images.append(image)
    return Targets.from_instances(images, ["a", "b"], torch.device("cpu"))


def positions_of(part: MapsToTokens) -> Tensor:
    return part(LEVELS, MASKS).positions


def test_cells_of_a_level_get_its_embedding() -> None:
    encoding = SinePositionEncoding(WIDTH)
    plain = positions_of(MapsToTokens(encoding))
    part = LevelsToTokens(encoding, embed_dim=WIDTH, num_levels=2)
    added = positions_of(part) - plain
    expected = part.level_embedding.repeat_interleave(torch.tensor([24, 6]), dim=0)
    torch.testing.assert_close(added, expected.expand(2, -1, -1))


def test_levels_and_embeddings_must_be_as_many() -> None:
    part = LevelsToTokens(SinePositionEncoding(WIDTH), embed_dim=WIDTH, num_levels=3)
    with pytest.raises(ValueError, match="longer than"):
        part(LEVELS, MASKS)


def test_without_proposals_and_denoising_only_the_decoder_predicts() -> None:
    predictions = transformer()(LEVELS, MASKS, targets((1, 2)))
    assert predictions.encoder is None
    assert predictions.denoising is None
    assert predictions.decoder.logits.shape == (2, 2, NUM_QUERIES, WIDTH)


@pytest.mark.parametrize("counts", [(1, 2), (0, 0)])
def test_denoising_queries_are_told_from_the_matching_ones(counts: tuple[int, int]) -> None:
    model = transformer(ContrastiveDenoising(WIDTH, 3, num_queries=6))
    plain = model(LEVELS, MASKS).decoder
    predictions = model(LEVELS, MASKS, targets(counts))
    assert torch.equal(predictions.decoder.logits, plain.logits)
    assert predictions.denoising is not None
    extra = predictions.denoising.queries
    num_denoising = model.decoder.seen.content.shape[1] - NUM_QUERIES
    # Three groups of a positive and a negative for each of two slots.
    assert num_denoising == (12 if any(counts) else 0)
    assert torch.equal(predictions.denoising.layers.logits[0], extra.queries.content)
    assert model.decoder.seen.blocked.shape == (num_denoising + NUM_QUERIES,) * 2
