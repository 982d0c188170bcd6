# SPDX-License-Identifier: Apache-2.0
"""The transformer with a prompt as a whole: selection, denoising, padding, batches, gradients."""

from dataclasses import replace

import pytest
import torch
from tests.detr.prompted import SIZES, prompted_tokens, random_prompt
from tests.detr.two_images import padded_maps, random_targets
from torch import nn

from vastdet.detr.alignment import ContrastiveAlignment
from vastdet.detr.criterion import LossWeights, SetCriterion
from vastdet.detr.enhancer import feature_enhancer
from vastdet.detr.heads import box_head, per_layer
from vastdet.detr.losses import FocalLoss
from vastdet.detr.matcher import HungarianMatcher
from vastdet.detr.prompt import PromptTokens
from vastdet.detr.prompt_denoising import PromptDenoising
from vastdet.detr.prompted_decoder import PromptedDecoder, prompted_decoder_layer
from vastdet.detr.prompted_transformer import PromptedTransformer
from vastdet.detr.query_position import BoxPosition
from vastdet.detr.query_selection import PromptedTokenSelection
from vastdet.detr.query_source import MixedQueries
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.transformer import LevelsToTokens
from vastdet.layers.positions import SinePositionEncoding

WIDTH, NUM_QUERIES, NUM_LABELS, FEATURES, NUM_LAYERS = 16, 6, 40, 12, 2
ATTENTION = {
    "embed_dim": WIDTH,
    "num_heads": 4,
    "num_levels": len(SIZES),
    "num_points": 2,
    "feedforward_dim": 32,
}


def selection() -> PromptedTokenSelection:
    return PromptedTokenSelection(
        WIDTH, NUM_QUERIES, class_head=ContrastiveAlignment(), box_head=box_head(WIDTH)
    )


def transformer() -> PromptedTransformer:
    torch.manual_seed(0)
    made = PromptedTransformer(
        to_tokens=LevelsToTokens(
            SinePositionEncoding(WIDTH), embed_dim=WIDTH, num_levels=len(SIZES)
        ),
        encoder=feature_enhancer(NUM_LAYERS, **ATTENTION, fusion_dim=32),
        query_source=MixedQueries(selection(), WIDTH),
        decoder=PromptedDecoder(
            (prompted_decoder_layer(**ATTENTION) for _ in range(NUM_LAYERS)),
            query_position=BoxPosition(WIDTH),
            refinement=LookForwardTwice(1e-3, prediction_eps=1e-5),
            class_heads=per_layer(ContrastiveAlignment, NUM_LAYERS, shared=False),
            box_heads=per_layer(lambda: box_head(WIDTH), NUM_LAYERS, shared=False),
            norm=nn.LayerNorm(WIDTH),
        ),
        denoising=PromptDenoising(WIDTH, FEATURES, num_queries=4),
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            # What starts at zero would hide what is wrong, and what gets no gradient.
            if "gamma" in name or "box_head" in name or "sampling" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def described_prompt() -> PromptTokens:
    features = torch.randn(NUM_LABELS, FEATURES, generator=torch.Generator().manual_seed(8))
    return replace(random_prompt(WIDTH), label_features=features)


@torch.no_grad()
def test_selects_the_tokens_that_fit_any_token_of_the_prompt_best() -> None:
    torch.manual_seed(0)
    part, tokens = selection(), prompted_tokens(WIDTH)
    features, _ = part.candidates(tokens)
    logits = part.class_head(features, tokens.prompt)
    made = part(tokens)
    for i, num_words in enumerate((5, 3)):
        best = logits[i, :, :num_words].amax(dim=1).sort(descending=True, stable=True)
        scores = made.predictions.logits[0, i].amax(dim=1)
        assert torch.equal(scores, best.values[:NUM_QUERIES])
    assert torch.equal(
        made.predictions.logits[0],
        logits.gather(1, made.indices[..., None].expand(-1, -1, 5)),
    )


def test_training_predicts_for_all_layers_proposals_and_denoising() -> None:
    levels, masks = padded_maps(WIDTH, SIZES)
    targets = random_targets(2, 1, num_classes=NUM_LABELS)
    made = transformer()(levels, masks, described_prompt(), targets)
    assert made.decoder.logits.shape == (NUM_LAYERS, 2, NUM_QUERIES, 5)
    assert made.encoder.logits.shape == (1, 2, NUM_QUERIES, 5)
    assert made.denoising.layers.logits.shape == (NUM_LAYERS, 2, 2 * 2 * 2, 5)
    assert made.denoising.queries.num_groups == 2


@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_reach_every_parameter(counts: tuple[int, int], autocast: bool) -> None:
    model, (levels, masks) = transformer(), padded_maps(WIDTH, SIZES)
    targets = random_targets(*counts, num_classes=3)  # tokens of the prompt that are no padding
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        predictions = model(levels, masks, described_prompt(), targets)
    criterion = SetCriterion(
        assigner=HungarianMatcher(), class_loss=FocalLoss(), weights=LossWeights()
    )
    losses = criterion(predictions, targets)
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_an_image_of_a_batch_is_as_alone() -> None:
    model, (levels, masks) = transformer().eval(), padded_maps(WIDTH, SIZES)
    prompt = described_prompt()
    made = model(levels, masks, prompt)
    assert made.denoising is None
    for i in range(2):
        one = slice(i, i + 1)
        alone = model(
            [x[one] for x in levels],
            [x[one] for x in masks],
            PromptTokens(prompt.values[one], prompt.padding_mask[one]),
        )
        # Largest difference seen: 5e-7 in logits, 6e-8 in boxes.
        torch.testing.assert_close(
            alone.decoder.logits, made.decoder.logits[:, one], atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            alone.decoder.boxes, made.decoder.boxes[:, one], atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_what_stands_in_padding_does_not_matter() -> None:
    model, (levels, masks) = transformer().eval(), padded_maps(WIDTH, SIZES)
    prompt = described_prompt()
    made = model(levels, masks, prompt)
    levels = [torch.where(m[:, None], 50.0, x) for x, m in zip(levels, masks, strict=True)]
    prompt = prompt.with_values(torch.where(prompt.padding_mask[..., None], -50.0, prompt.values))
    other = model(levels, masks, prompt)
    assert torch.equal(made.decoder.logits, other.decoder.logits)
    assert torch.equal(made.decoder.boxes, other.decoder.boxes)
