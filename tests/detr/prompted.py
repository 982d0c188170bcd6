# SPDX-License-Identifier: Apache-2.0
"""Random tokens of two images with a prompt, for tests of what reads both."""

import torch
from tests.detr.two_images import padded_maps

from vastdet.detr.prompt import PromptedTokens, PromptTokens, prompted
from vastdet.detr.transformer import MapsToTokens
from vastdet.layers.positions import SinePositionEncoding

SIZES = ((6, 8), (3, 4))
NUM_PROMPT = 5


def prompted_tokens(width: int, *, num_padding: int = 2) -> PromptedTokens:
    """Two images; the second has padding at the right, and at the end of its prompt."""
    tokens = MapsToTokens(SinePositionEncoding(width))(*padded_maps(width, SIZES))
    return prompted(tokens, random_prompt(width, num_padding=num_padding))


def random_prompt(width: int, *, num_padding: int = 2) -> PromptTokens:
    """Five tokens an image, of which the last few of the second are padding."""
    generator = torch.Generator().manual_seed(3)
    padding = torch.zeros(2, NUM_PROMPT, dtype=torch.bool)
    padding[1, NUM_PROMPT - num_padding :] = True
    return PromptTokens(torch.randn(2, NUM_PROMPT, width, generator=generator), padding)


def with_noise_in_padding(tokens: PromptedTokens) -> PromptedTokens:
    """The same, with other numbers wherever there is padding."""
    values = torch.where(tokens.padding_mask[..., None], 50.0, tokens.values)
    padding = tokens.prompt.padding_mask
    assert padding is not None
    prompt = torch.where(padding[..., None], -50.0, tokens.prompt.values)
    return tokens.with_values(values).with_prompt(tokens.prompt.with_values(prompt))
