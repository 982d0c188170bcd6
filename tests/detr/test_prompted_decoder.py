# SPDX-License-Identifier: Apache-2.0
"""Decoder layers with a prompt: against transformers' Grounding DINO, and with padding."""

import pytest
import torch
from tests.detr.prompted import SIZES, prompted_tokens, with_noise_in_padding
from torch import nn

from vastdet.detr.alignment import ContrastiveAlignment
from vastdet.detr.decoder import QueryState
from vastdet.detr.heads import box_head, per_layer
from vastdet.detr.prompted_decoder import (
    PromptedDecoder,
    PromptedDecoderLayer,
    prompted_decoder_layer,
)
from vastdet.detr.query_position import BoxPosition
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.structures import Queries

WIDTH, HEADS, POINTS = 16, 4, 2
ATTENTION = {
    "embed_dim": WIDTH,
    "num_heads": HEADS,
    "num_levels": len(SIZES),
    "num_points": POINTS,
    "feedforward_dim": 32,
}


def random_layer() -> PromptedDecoderLayer:
    torch.manual_seed(0)
    layer = prompted_decoder_layer(**ATTENTION)
    assert isinstance(layer, PromptedDecoderLayer)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def random_state() -> QueryState:
    generator = torch.Generator().manual_seed(4)
    content, position = torch.randn(2, 2, 6, WIDTH, generator=generator)
    return QueryState(content, position, torch.rand(2, 6, 4, generator=generator) * 0.5 + 0.2)


def copy_attention(target: nn.Module, source: nn.Module) -> None:
    parts = (target.query, target.key, target.value)
    for part, weight, bias in zip(
        parts, source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3), strict=True
    ):
        part.load_state_dict({"weight": weight, "bias": bias})
    target.out_proj.load_state_dict(source.out_proj.state_dict())


@torch.no_grad()
def test_the_layer_is_that_of_transformers() -> None:
    module = pytest.importorskip("transformers.models.grounding_dino.modeling_grounding_dino")
    config = module.GroundingDinoConfig(
        d_model=WIDTH,
        decoder_ffn_dim=32,
        decoder_attention_heads=HEADS,
        decoder_n_points=POINTS,
        num_feature_levels=len(SIZES),
        disable_custom_kernels=True,
    )
    theirs, ours = module.GroundingDinoDecoderLayer(config).eval(), random_layer().eval()
    copy_attention(theirs.self_attn, ours.self_attn)
    copy_attention(theirs.encoder_attn_text, ours.prompt_attn)
    for target, source in (
        (theirs.self_attn_layer_norm, ours.self_attn_norm),
        (theirs.encoder_attn_text_layer_norm, ours.prompt_attn_norm),
        (theirs.encoder_attn, ours.cross_attn),
        (theirs.encoder_attn_layer_norm, ours.cross_attn_norm),
        (theirs.fc1, ours.ffn.linear1),
        (theirs.fc2, ours.ffn.linear2),
        (theirs.final_layer_norm, ours.ffn_norm),
    ):
        target.load_state_dict(source.state_dict())

    tokens, state = prompted_tokens(WIDTH), random_state()
    text_mask = torch.where(tokens.prompt.padding_mask, float("-inf"), 0.0)[:, None, None]
    expected = theirs(
        state.content,
        state.position,
        tokens.level_references(state.boxes),
        tokens.spatial_shapes,
        list(tokens.sizes),
        tokens.level_start_index,
        vision_encoder_hidden_states=tokens.values,
        vision_encoder_attention_mask=~tokens.padding_mask,
        text_encoder_hidden_states=tokens.prompt.values,
        text_encoder_attention_mask=text_mask,
    )[0]
    # Largest difference seen: 3e-7.
    torch.testing.assert_close(ours(state, tokens), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_nobody_looks_at_padding() -> None:
    layer, tokens, state = random_layer().eval(), prompted_tokens(WIDTH), random_state()
    made = layer(state, tokens)
    assert torch.equal(made, layer(state, with_noise_in_padding(tokens)))
    other = tokens.prompt.with_values(tokens.prompt.values + 1)
    assert not torch.allclose(made, layer(state, tokens.with_prompt(other)))


def decoder() -> PromptedDecoder:
    torch.manual_seed(0)
    return PromptedDecoder(
        (random_layer() for _ in range(2)),
        query_position=BoxPosition(WIDTH),
        refinement=LookForwardTwice(1e-3, prediction_eps=1e-5),
        class_heads=per_layer(ContrastiveAlignment, 2, shared=False),
        box_heads=per_layer(lambda: box_head(WIDTH), 2, shared=False),
        norm=nn.LayerNorm(WIDTH),
    )


def test_logits_are_those_of_the_prompt_s_tokens() -> None:
    stack, tokens, state = decoder(), prompted_tokens(WIDTH), random_state()
    made = stack(Queries(state.content, state.boxes), tokens)
    assert made.logits.shape == (2, 2, 6, 5)
    expected = stack.class_heads[1](made.content, tokens.prompt)
    assert torch.equal(made.logits[1], expected)


def test_bfloat16_and_gradients() -> None:
    stack, tokens, state = decoder(), prompted_tokens(WIDTH), random_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = stack(Queries(state.content, state.boxes), tokens)
    (made.logits.float().sigmoid().sum() + made.boxes.square().sum()).backward()
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
