# SPDX-License-Identifier: Apache-2.0
"""The feature enhancer: its order, its slots, padding, batches and gradients."""

from dataclasses import fields, replace

import pytest
import torch
from tests.detr.prompted import SIZES, prompted_tokens, with_noise_in_padding
from torch import Tensor, nn

from vastdet.detr.enhancer import FeatureEnhancer, feature_enhancer
from vastdet.detr.prompt import PromptedTokens, PromptTokens, prompted
from vastdet.detr.tokens import Tokens

WIDTH = 16


def enhancer(**settings: float) -> FeatureEnhancer:
    torch.manual_seed(0)
    made = feature_enhancer(
        2,
        embed_dim=WIDTH,
        num_heads=4,
        feedforward_dim=32,
        num_levels=len(SIZES),
        num_points=2,
        fusion_dim=32,
        **settings,
    )
    with torch.no_grad():
        for fusion in made.fusion_layers:
            fusion.image_gamma.fill_(0.5)
            fusion.prompt_gamma.fill_(0.5)
    return made


def test_parts_of_tokens() -> None:
    tokens = prompted_tokens(WIDTH)
    assert isinstance(tokens.with_values(tokens.values + 1), PromptedTokens)
    assert tokens.with_values(tokens.values + 1).prompt is tokens.prompt
    other = PromptTokens(torch.randn(2, 3, WIDTH))
    for changed in (tokens.with_prompt(other), prompted(tokens, other)):
        assert changed.prompt is other
        for field in fields(Tokens):
            assert getattr(changed, field.name) is getattr(tokens, field.name)
    features = torch.randn(9, 4)
    described = replace(other, label_features=features).with_values(other.values + 1)
    assert described.label_features is features
    assert torch.equal(described.values, other.values + 1)


class Note(nn.Module):
    """Writes down that it was called, and with which values of the prompt."""

    def __init__(self, name: str, calls: list[tuple[str, float]]) -> None:
        super().__init__()
        self.name = name
        self.calls = calls


class NoteFusion(Note):
    def forward(self, tokens: PromptedTokens) -> PromptedTokens:
        self.calls.append((self.name, tokens.prompt.values.sum().item()))
        return tokens


class NoteLayer(Note):
    def forward(self, tokens: PromptedTokens, references: Tensor) -> PromptedTokens:
        self.calls.append((self.name, tokens.prompt.values.sum().item()))
        return tokens


class AddOne(nn.Module):
    def forward(self, prompt: PromptTokens) -> PromptTokens:
        return prompt.with_values(prompt.values + 1)


def test_fusion_comes_first_then_the_prompt_s_layer_then_the_image_s() -> None:
    calls: list[tuple[str, float]] = []
    stack = FeatureEnhancer(
        [NoteLayer(f"image {i}", calls) for i in range(2)],
        fusion_layers=[NoteFusion(f"fusion {i}", calls) for i in range(2)],
        prompt_layers=[AddOne() for _ in range(2)],
    )
    tokens = prompted_tokens(WIDTH)
    tokens = tokens.with_prompt(PromptTokens(torch.zeros(2, 1, 1)))
    made = stack(tokens)
    assert calls == [("fusion 0", 0.0), ("image 0", 2.0), ("fusion 1", 2.0), ("image 1", 4.0)]
    assert (made.prompt.values == 2).all()


@pytest.mark.parametrize("name", ["fusion", "prompt"])
def test_numbers_of_layers_that_differ_are_an_error(name: str) -> None:
    layers = {"fusion_layers": [nn.Identity()] * 2, f"{name}_layers": [nn.Identity()]}
    with pytest.raises(ValueError, match=f"got 1 {name} layers for 2 image layers"):
        FeatureEnhancer([nn.Identity()] * 2, **layers)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    stack, tokens = enhancer().eval(), prompted_tokens(WIDTH)
    made, other = stack(tokens), stack(with_noise_in_padding(tokens))
    valid, valid_prompt = ~tokens.padding_mask, ~tokens.prompt.padding_mask
    assert torch.equal(made.values[valid], other.values[valid])
    assert torch.equal(made.prompt.values[valid_prompt], other.prompt.values[valid_prompt])
    # A longer prompt, whose tail is padding, says the same.
    prompt = tokens.prompt
    longer = PromptTokens(
        torch.cat([prompt.values, torch.randn(2, 4, WIDTH)], dim=1),
        torch.cat([prompt.padding_mask, torch.ones(2, 4, dtype=torch.bool)], dim=1),
    )
    other = stack(tokens.with_prompt(longer))
    # Largest difference seen: 0.
    torch.testing.assert_close(made.values[valid], other.values[valid], atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_image_of_a_batch_is_as_alone() -> None:
    stack, tokens = enhancer().eval(), prompted_tokens(WIDTH)
    made = stack(tokens)
    for i in range(2):
        one = {
            name: getattr(tokens, name)[i : i + 1]
            for name in ("values", "positions", "padding_mask", "valid_ratios")
        }
        prompt = PromptTokens(
            tokens.prompt.values[i : i + 1], tokens.prompt.padding_mask[i : i + 1]
        )
        alone = stack(replace(tokens, **one, prompt=prompt))
        # Largest difference seen: 0.
        torch.testing.assert_close(alone.values, made.values[i : i + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            alone.prompt.values, made.prompt.values[i : i + 1], atol=1e-5, rtol=0
        )


def test_bfloat16_and_gradients() -> None:
    stack, tokens = enhancer(dropout=0.1), prompted_tokens(WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = stack(tokens)
    (made.values.square().sum() + made.prompt.values.square().sum()).backward()
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
