# SPDX-License-Identifier: Apache-2.0
"""Logits of features and prompt tokens, and what padding does to losses."""

import math

import pytest
import torch
from tests.detr.prompted import random_prompt

from vastdet.detr.alignment import PADDING_LOGIT, ContrastiveAlignment, DotProductAlignment
from vastdet.detr.losses import FocalLoss, VarifocalLoss
from vastdet.detr.prompt import PromptTokens

WIDTH = 16


def test_logits_by_loops() -> None:
    prompt, features = random_prompt(WIDTH), torch.randn(2, 4, WIDTH)
    head = ContrastiveAlignment()
    assert head.bias.item() == pytest.approx(-math.log(99))
    logits, plain = head(features, prompt), DotProductAlignment()(features, prompt)
    for b in range(2):
        for q in range(4):
            for k in range(5):
                product = features[b, q].dot(prompt.values[b, k])
                if b == 1 and k >= 3:
                    assert logits[b, q, k] == plain[b, q, k] == PADDING_LOGIT
                    continue
                # Largest difference seen: 5e-7.
                torch.testing.assert_close(plain[b, q, k], product, atol=1e-5, rtol=0)
                expected = product / 4 - math.log(99)
                torch.testing.assert_close(logits[b, q, k], expected, atol=1e-5, rtol=0)


def test_the_plain_product_is_that_of_transformers() -> None:
    module = pytest.importorskip("transformers.models.grounding_dino.modeling_grounding_dino")
    theirs = module.GroundingDinoContrastiveEmbedding(module.GroundingDinoConfig(max_text_len=8))
    prompt, features = random_prompt(WIDTH), torch.randn(2, 4, WIDTH)
    expected = theirs(features, prompt.values, ~prompt.padding_mask)[..., :5]
    ours = DotProductAlignment()(features, prompt)
    valid = expected.isfinite()
    assert torch.equal(ours[valid], expected[valid])
    assert (ours[~valid] == PADDING_LOGIT).all()


def test_layers_may_come_first() -> None:
    prompt, features = random_prompt(WIDTH), torch.randn(3, 2, 4, WIDTH)
    head = ContrastiveAlignment()
    expected = torch.stack([head(layer, prompt) for layer in features])
    torch.testing.assert_close(head(features, prompt), expected)


def test_a_prompt_without_a_mask_is_valid_as_a_whole() -> None:
    prompt, features = random_prompt(WIDTH, num_padding=0), torch.randn(2, 4, WIDTH)
    head = ContrastiveAlignment()
    unmasked = PromptTokens(prompt.values)
    assert torch.equal(head(features, prompt), head(features, unmasked))


@pytest.mark.parametrize("loss", [FocalLoss(), VarifocalLoss()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_costs_nothing_and_has_no_gradient(
    loss: FocalLoss | VarifocalLoss, dtype: torch.dtype
) -> None:
    prompt, features = random_prompt(WIDTH), torch.randn(1, 2, 4, WIDTH, requires_grad=True)
    logits = ContrastiveAlignment()(features, prompt).to(dtype)
    logits.retain_grad()
    assert (logits[0, 1, :, 3:].float().sigmoid() == 0).all()
    labels, ious = torch.full((1, 2, 4), 1), torch.full((1, 2, 4), 0.5)
    total = loss(logits, labels, ious, num_boxes=torch.tensor(1.0)).sum()
    total.backward()
    assert total.isfinite()
    assert (logits.grad[0, 1, :, 3:] == 0).all()
    assert features.grad.isfinite().all()
    short = loss(logits[:, 1:, :, :3], labels[:, 1:], ious[:, 1:], num_boxes=torch.tensor(1.0))
    whole = loss(logits[:, 1:], labels[:, 1:], ious[:, 1:], num_boxes=torch.tensor(1.0))
    assert torch.equal(short, whole)


def test_bfloat16() -> None:
    prompt, features = random_prompt(WIDTH), torch.randn(2, 4, WIDTH)
    head = ContrastiveAlignment()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features, prompt)
    # Logits of up to 4 in bfloat16; largest difference seen: 6e-3.
    torch.testing.assert_close(logits.float(), head(features, prompt), atol=0.05, rtol=0)
