# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vastdet.layers.attention import CrossAttention, MultiheadAttention, plain_attention


def both(width: int = 32, heads: int = 4) -> tuple[MultiheadAttention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(width, heads, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours = MultiheadAttention(width, heads)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("same", [True, False], ids=["query is key", "query and key"])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_torch(same: bool, masked: bool) -> None:
    ours, theirs = both()
    query, value = torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    key = query if same else torch.randn(2, 7, 32)
    blocked = torch.rand(7, 7) < 0.4 if masked else None
    if blocked is not None:
        blocked.fill_diagonal_(False)
    expected, _ = theirs(query, key, value, attn_mask=blocked)
    # Measured: 3e-7.
    torch.testing.assert_close(ours(query, key, value, blocked=blocked), expected)


def test_blocked_keys_of_an_image() -> None:
    ours, theirs = both()
    query, key = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    expected, _ = theirs(query, key, key, key_padding_mask=padding)
    got = ours(query, key, key, blocked=padding[:, None, None])
    torch.testing.assert_close(got, expected)


def test_a_bias_is_added_to_the_logits() -> None:
    ours, theirs = both()
    query = torch.randn(2, 5, 32)
    bias = torch.randn(2, 4, 5, 5)
    expected, _ = theirs(query, query, query, attn_mask=bias.flatten(0, 1))
    torch.testing.assert_close(ours(query, query, query, bias=bias), expected)
    blocked = torch.eye(5, dtype=torch.bool)
    merged = bias.masked_fill(blocked, float("-inf"))
    expected, _ = theirs(query, query, query, attn_mask=merged.flatten(0, 1))
    torch.testing.assert_close(ours(query, query, query, bias=bias, blocked=blocked), expected)


def test_no_queries() -> None:
    ours, _ = both()
    assert ours(torch.zeros(2, 0, 32), torch.randn(2, 3, 32), torch.randn(2, 3, 32)).numel() == 0


def test_width_must_be_a_multiple_of_heads() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads, got 30 and 4"):
        MultiheadAttention(30, 4)


def both_crossed() -> tuple[CrossAttention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(32, 4, kdim=20, vdim=20, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours = CrossAttention(32, 4, context_dim=20)
    weights = (theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight)
    projections = (ours.query_proj, ours.key_proj, ours.value_proj)
    for linear, weight, bias in zip(
        projections, weights, theirs.in_proj_bias.chunk(3), strict=True
    ):
        linear.load_state_dict({"weight": weight, "bias": bias})
    ours.out_proj.load_state_dict(theirs.out_proj.state_dict())
    return ours.eval(), theirs.eval()


def test_cross_attention_equals_torch() -> None:
    ours, theirs = both_crossed()
    query, context = torch.randn(2, 5, 32), torch.randn(2, 9, 20)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    expected, _ = theirs(query, context, context, key_padding_mask=padding)
    got = ours(query, *ours.keys_and_values(context), blocked=padding[:, None, None])
    # Measured: 4.8e-7.
    torch.testing.assert_close(got, expected)


def test_cross_attention_of_shared_queries() -> None:
    ours, _ = both_crossed()
    query, context = torch.randn(1, 5, 32), torch.randn(3, 9, 20)
    keys, values = ours.keys_and_values(context)
    got = ours(query, keys, values)
    torch.testing.assert_close(got, ours(query.expand(3, -1, -1), keys, values))


def test_cross_attention_drops_in_training_only() -> None:
    layer = CrossAttention(32, 4, context_dim=20, dropout=0.9)
    query, context = torch.randn(1, 5, 32), torch.randn(1, 9, 20)
    arguments = (query, *layer.keys_and_values(context))
    assert not torch.equal(layer(*arguments), layer(*arguments))
    layer.eval()
    torch.testing.assert_close(layer(*arguments), layer(*arguments))


def test_cross_attention_width_must_be_a_multiple_of_heads() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads, got 30 and 4"):
        CrossAttention(30, 4, context_dim=8)


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_plain_attention_equals_torch(mask: str) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    weights = {
        "none": None,
        "bool": torch.rand(5, 7) > 0.3,
        "float": torch.randn(2, 3, 5, 7).masked_fill(torch.rand(5, 7) > 0.7, float("-inf")),
    }[mask]
    results = []
    for attention in (plain_attention, F.scaled_dot_product_attention):
        out = attention(query, key, value, attn_mask=weights, dropout_p=0.0)
        results.append([out, *torch.autograd.grad(out.square().sum(), (query, key, value))])
    # Measured: at most 1e-6.
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_query_that_may_look_at_nothing_gets_numbers() -> None:
    query, key, value = (torch.randn(1, 1, 4, 8) for _ in range(3))
    blocked = torch.tensor([True, False, False, False])[:, None].expand(4, 4)
    out = plain_attention(query, key, value, attn_mask=~blocked, dropout_p=0.0)
    torch.testing.assert_close(out[0, 0, 0], value[0, 0].mean(dim=0))


def test_bf16_on_the_cpu_is_near_float32() -> None:
    torch.manual_seed(0)
    module = MultiheadAttention(64, 4).eval()
    x = torch.randn(2, 30, 64)
    blocked = torch.rand(30, 30) > 0.5
    with torch.no_grad():
        exact = module(x, x, x, blocked=blocked)
        with torch.autocast("cpu", torch.bfloat16):
            half = module(x, x, x, blocked=blocked)
    assert half.dtype == torch.bfloat16
    # Measured: 0.007 of 1.2.
    assert (half - exact).abs().max() < 0.02 * exact.abs().max()
