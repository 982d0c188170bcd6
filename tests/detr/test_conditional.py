# SPDX-License-Identifier: Apache-2.0
"""Attention by content and place: the sum of two comparisons, and what a box's size changes."""

from dataclasses import replace

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from vastdet.detr.anchors import anchor_parts
from vastdet.detr.conditional import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    ConditionalState,
    FirstConditionalCrossAttention,
    SizedSpatialQuery,
    SpatialQuery,
)
from vastdet.detr.query_position import box_sine_features
from vastdet.detr.tokens import Tokens, flatten_maps

WIDTH, HEADS = 16, 4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def memory() -> Tokens:
    padding = torch.zeros(2, 3, 5, dtype=torch.bool)
    padding[1, :, 3:] = True
    return flatten_maps([torch.randn(2, WIDTH, 3, 5)], [padding], [torch.randn(2, 3, 5, WIDTH)])


def state() -> ConditionalState:
    content, position, spatial = torch.randn(3, 2, 6, WIDTH).unbind()
    return ConditionalState(content, position, torch.rand(2, 6, 4), spatial=spatial)


def by_hand(
    logits: list[Tensor], value: Tensor, out_proj: nn.Module, blocked: Tensor | None = None
) -> Tensor:
    """Attention of heads whose logits (B, Q, S) before scaling by their width are given."""
    heads = []
    for head, x in zip(logits, value.chunk(HEADS, dim=-1), strict=True):
        if blocked is not None:
            head = head.masked_fill(blocked, float("-inf"))
        heads.append(head.softmax(dim=-1) @ x)
    return out_proj(torch.cat(heads, dim=-1))


def products(query: Tensor, key: Tensor) -> list[Tensor]:
    pairs = zip(query.chunk(HEADS, dim=-1), key.chunk(HEADS, dim=-1), strict=True)
    return [q @ k.transpose(1, 2) for q, k in pairs]


@pytest.mark.parametrize("is_first", [False, True])
def test_cross_attention_adds_the_fit_of_contents_and_of_places(is_first: bool) -> None:
    kind = FirstConditionalCrossAttention if is_first else ConditionalCrossAttention
    attention, tokens, queries = kind(WIDTH, HEADS), memory(), state()
    query, key = attention.query_content(queries.content), attention.key_content(tokens.values)
    key_position = attention.key_position(tokens.positions)
    if is_first:
        query = query + attention.query_position(queries.position)
        key = key + key_position
    places = products(attention.query_spatial(queries.spatial), key_position)
    scale = (2 * WIDTH / HEADS) ** -0.5
    logits = [scale * (a + b) for a, b in zip(products(query, key), places, strict=True)]
    expected = by_hand(
        logits, attention.value(tokens.values), attention.out_proj, tokens.padding_mask[:, None]
    )
    torch.testing.assert_close(attention(queries, tokens), expected, atol=1e-6, rtol=1e-5)


def test_self_attention_adds_position_to_content() -> None:
    attention, queries = ConditionalSelfAttention(WIDTH, HEADS), state()
    blocked = torch.rand(6, 6) < 0.3
    blocked.fill_diagonal_(False)
    query = attention.query_content(queries.content) + attention.query_position(queries.position)
    key = attention.key_content(queries.content) + attention.key_position(queries.position)
    logits = [x * (WIDTH / HEADS) ** -0.5 for x in products(query, key)]
    expected = by_hand(logits, attention.value(queries.content), attention.out_proj, blocked)
    found = attention(replace(queries, blocked=blocked))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_spatial_query_is_the_centre_in_the_first_layer_and_scaled_after_it() -> None:
    boxes, content = torch.rand(2, 6, 4), torch.randn(2, 6, WIDTH)
    spatial = SpatialQuery(WIDTH)
    centre = box_sine_features(boxes[..., :2], WIDTH // 2)
    assert torch.equal(spatial(boxes, content, 0), centre)
    assert torch.equal(spatial(boxes[..., :2], content, 0), centre), "points do as well"
    assert torch.equal(spatial(boxes, content, 1), centre * spatial.scale(content))


def test_twice_the_width_halves_the_features_of_x_only() -> None:
    spatial = SizedSpatialQuery(WIDTH)
    content = torch.randn(1, 1, WIDTH)
    boxes = torch.tensor([[[0.3, 0.6, 0.2, 0.4]]])
    one = spatial(boxes, content, 1)
    wide = spatial(boxes * torch.tensor([1.0, 1.0, 2.0, 1.0]), content, 1)
    y, x = one.chunk(2, dim=-1)
    torch.testing.assert_close(wide, torch.cat([y, x / 2], dim=-1))
    width, height = spatial.size_head(content)[0, 0].sigmoid()
    plain = SpatialQuery.forward(spatial, boxes, content, 1)
    torch.testing.assert_close(x, plain.chunk(2, dim=-1)[1] * width / 0.2)
    torch.testing.assert_close(y, plain.chunk(2, dim=-1)[0] * height / 0.4)


def test_positions_of_the_memory_come_back_unscaled(cfg: CfgNode) -> None:
    node = cfg.MODEL.DAB_DETR
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = WIDTH, HEADS, 8
    node.NUM_ENCODER_LAYERS = 2
    encoder = anchor_parts(node)["encoder"]
    tokens = memory()
    encoded = encoder(tokens)
    assert encoded.positions is tokens.positions
    first = encoder.layers[0]
    scaled = tokens.positions * encoder.position_scale(tokens.values)
    expected = first(replace(tokens, positions=scaled), tokens.cell_references())
    encoder.layers = encoder.layers[:1]
    assert torch.equal(encoder(tokens).values, expected.values)
