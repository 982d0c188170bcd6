# SPDX-License-Identifier: Apache-2.0
"""Attention in both directions: against transformers, against loops, and with padding."""

import pytest
import torch
from tests.detr.prompted import prompted_tokens, with_noise_in_padding
from torch import Tensor, nn

from vastdet.detr.fusion import BiAttention, FusionLayer

WIDTH, HIDDEN, HEADS = 16, 32, 4


def fusion_layer(*, dropout: float = 0.0) -> FusionLayer:
    torch.manual_seed(0)
    attention = BiAttention(WIDTH, hidden_dim=HIDDEN, num_heads=HEADS, dropout=dropout)
    layer = FusionLayer(attention, embed_dim=WIDTH)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def seen_by_loops(attention: BiAttention, image: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """What one image (S, C) and its prompt (K, C) see, score by score."""
    size = HIDDEN // HEADS
    cells, words = attention.image_proj(image), attention.prompt_proj(prompt)
    cell_values, word_values = (
        attention.image_value_proj(image),
        attention.prompt_value_proj(prompt),
    )
    by_image, by_prompt = torch.zeros_like(cells), torch.zeros_like(words)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = torch.zeros(len(cells), len(words))
        for i in range(len(cells)):
            for j in range(len(words)):
                scores[i, j] = cells[i, part].dot(words[j, part]) / size**0.5
        for i in range(len(cells)):
            weights = scores[i].exp() / scores[i].exp().sum()
            by_image[i, part] = (weights[:, None] * word_values[:, part]).sum(dim=0)
        for j in range(len(words)):
            weights = scores[:, j].exp() / scores[:, j].exp().sum()
            by_prompt[j, part] = (weights[:, None] * cell_values[:, part]).sum(dim=0)
    return attention.image_out_proj(by_image), attention.prompt_out_proj(by_prompt)


@torch.no_grad()
def test_each_direction_has_its_own_softmax_of_one_matrix() -> None:
    attention = fusion_layer().attention
    assert isinstance(attention, BiAttention)
    image, prompt = torch.randn(7, WIDTH), torch.randn(3, WIDTH)
    seen = attention(image[None], prompt[None])
    for ours, theirs in zip(seen, seen_by_loops(attention, image, prompt), strict=True):
        # Largest difference seen: 7e-7.
        torch.testing.assert_close(ours[0], theirs, atol=3e-6, rtol=0)


@torch.no_grad()
def test_fusion_is_that_of_transformers() -> None:
    module = pytest.importorskip("transformers.models.grounding_dino.modeling_grounding_dino")
    config = module.GroundingDinoConfig(
        d_model=WIDTH, encoder_ffn_dim=2 * HIDDEN, encoder_attention_heads=2 * HEADS
    )
    theirs = module.GroundingDinoFusionLayer(config).eval()
    ours = fusion_layer().eval()
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (theirs.layer_norm_vision, ours.image_norm),
        (theirs.layer_norm_text, ours.prompt_norm),
    ]
    names = {
        "vision_proj": "image_proj",
        "text_proj": "prompt_proj",
        "values_vision_proj": "image_value_proj",
        "values_text_proj": "prompt_value_proj",
        "out_vision_proj": "image_out_proj",
        "out_text_proj": "prompt_out_proj",
    }
    attention = ours.attention
    pairs += [(getattr(theirs.attn, a), getattr(attention, b)) for a, b in names.items()]
    for target, source in pairs:
        target.load_state_dict(source.state_dict())
    theirs.vision_param.copy_(ours.image_gamma)
    theirs.text_param.copy_(ours.prompt_gamma)

    tokens = prompted_tokens(WIDTH)
    (image, _), (text, _) = theirs(
        tokens.values, tokens.prompt.values, tokens.padding_mask, tokens.prompt.padding_mask
    )
    made = ours(tokens)
    assert tokens.padding_mask.any()
    assert tokens.prompt.padding_mask.any()
    # At padding as well. Largest difference seen: 2e-7.
    torch.testing.assert_close(made.values, image, atol=5e-6, rtol=0)
    torch.testing.assert_close(made.prompt.values, text, atol=5e-6, rtol=0)


@torch.no_grad()
def test_nobody_looks_at_padding() -> None:
    layer, tokens = fusion_layer(), prompted_tokens(WIDTH)
    made, other = layer(tokens), layer(with_noise_in_padding(tokens))
    valid, valid_prompt = ~tokens.padding_mask, ~tokens.prompt.padding_mask
    assert torch.equal(made.values[valid], other.values[valid])
    assert torch.equal(made.prompt.values[valid_prompt], other.prompt.values[valid_prompt])


@torch.no_grad()
def test_an_image_of_a_batch_sees_what_it_sees_alone() -> None:
    attention, tokens = fusion_layer().attention, prompted_tokens(WIDTH)
    seen = attention(
        tokens.values, tokens.prompt.values, tokens.padding_mask, tokens.prompt.padding_mask
    )
    for i in range(2):
        cells, words = ~tokens.padding_mask[i], ~tokens.prompt.padding_mask[i]
        alone = attention(tokens.values[i : i + 1, cells], tokens.prompt.values[i : i + 1, words])
        # Largest difference seen: 1e-6.
        torch.testing.assert_close(seen[0][i : i + 1, cells], alone[0], atol=3e-6, rtol=0)
        torch.testing.assert_close(seen[1][i : i + 1, words], alone[1], atol=3e-6, rtol=0)


def test_a_prompt_of_padding_alone_is_finite() -> None:
    layer, tokens = fusion_layer(), prompted_tokens(WIDTH, num_padding=5)
    made = layer(tokens)
    (made.values.sum() + made.prompt.values.sum()).backward()
    assert made.values.isfinite().all()
    assert made.prompt.values.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_at_the_start_there_are_only_the_norms() -> None:
    layer = FusionLayer(BiAttention(WIDTH, hidden_dim=HIDDEN, num_heads=HEADS), embed_dim=WIDTH)
    tokens = prompted_tokens(WIDTH)
    made = layer(tokens)
    torch.testing.assert_close(made.values, layer.image_norm(tokens.values), atol=1e-3, rtol=0)
    assert (layer.image_gamma == 1e-4).all()
    assert (layer.prompt_gamma == 1e-4).all()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_bfloat16_and_gradients(dropout: float) -> None:
    layer, tokens = fusion_layer(dropout=dropout), prompted_tokens(WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = layer(tokens)
    assert made.values.isfinite().all()
    (made.values.square().sum() + made.prompt.values.square().sum()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_dropout_acts_in_training_alone() -> None:
    layer, tokens = fusion_layer(dropout=0.5), prompted_tokens(WIDTH)
    assert not torch.equal(layer(tokens).values, layer(tokens).values)
    layer.eval()
    assert torch.equal(layer(tokens).values, layer(tokens).values)


def test_channels_that_the_heads_cannot_share_are_an_error() -> None:
    with pytest.raises(ValueError, match="got 10 and 4"):
        BiAttention(WIDTH, hidden_dim=10, num_heads=4)
