# SPDX-License-Identifier: Apache-2.0
"""The hybrid encoder against transformers, and padding that changes nothing."""

import pytest
import torch
from tests.models.rt_detr_reference import random_weights
from torch import Tensor

from vastdet.models.rt_detr.hybrid_encoder import AIFILayer, HybridEncoder

SIZES = [(16, 24), (8, 12), (4, 6)]


def maps_and_masks(batch: int) -> tuple[list[Tensor], list[Tensor]]:
    maps = [torch.randn(batch, 32, *size) for size in SIZES]
    return maps, [torch.zeros(batch, *size, dtype=torch.bool) for size in SIZES]


def copy_weights(ours: HybridEncoder, theirs: torch.nn.Module) -> None:
    """By order of creation; the attention's three projections are one matrix in ours."""
    state = theirs.state_dict()
    names = iter(k for k in state if not k.startswith("aifi."))
    new = {}
    for name in ours.state_dict():
        if not name.startswith("aifi."):
            new[name] = state[next(names)]
    old = "aifi.0.layers.0."
    for kind in ("weight", "bias"):
        attention = [state[f"{old}self_attn.{x}_proj.{kind}"] for x in "qkv"]
        new[f"aifi.0.self_attn.in_proj_{kind}"] = torch.cat(attention)
        for name, other in (
            ("self_attn.out_proj", "self_attn.o_proj"),
            ("self_attn_norm", "self_attn_layer_norm"),
            ("ffn.linear1", "mlp.fc1"),
            ("ffn.linear2", "mlp.fc2"),
            ("ffn_norm", "final_layer_norm"),
        ):
            new[f"aifi.0.{name}.{kind}"] = state[f"{old}{other}.{kind}"]
    assert next(names, None) is None
    ours.load_state_dict(new)


def test_width_that_no_sine_can_fill() -> None:
    with pytest.raises(ValueError, match="embed_dim is 30, expected a multiple of 4"):
        AIFILayer(30, 2, 8)


@pytest.mark.parametrize("expansion", [1.0, 0.5])
def test_equals_transformers(expansion: float) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.rt_detr.modeling_rt_detr import RTDetrHybridEncoder

    torch.manual_seed(0)
    config = transformers.RTDetrConfig(
        encoder_hidden_dim=32,
        encoder_in_channels=[32] * 3,
        encoder_ffn_dim=48,
        num_attention_heads=4,
        encoder_attention_heads=4,
        hidden_expansion=expansion,
    )
    theirs = RTDetrHybridEncoder(config).eval()
    random_weights(theirs)
    ours = HybridEncoder(embed_dim=32, num_heads=4, feedforward_dim=48, expansion=expansion).eval()
    copy_weights(ours, theirs)
    maps, masks = maps_and_masks(2)
    with torch.no_grad():
        found = ours(maps, masks)
        expected = theirs(list(maps)).last_hidden_state
    largest = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    # Every output depends on its input: it differs from image to image.
    assert all(float((m[0] - m[1]).std()) > 0.01 for m in expected)
    # Measured: 1.3e-6 where the largest value is 4.6.
    print(f"largest difference {largest:.1e}")
    assert largest < 1e-5


def test_padding_changes_nothing() -> None:
    torch.manual_seed(1)
    encoder = HybridEncoder(embed_dim=32, num_heads=4, feedforward_dim=48).eval()
    random_weights(encoder)
    maps, masks = maps_and_masks(1)
    alone = [m[..., : m.shape[-1] // 2] for m in maps]
    for mask in masks:
        mask[..., mask.shape[-1] // 2 :] = True
    with torch.no_grad():
        padded = encoder(maps, masks)
        single = encoder(alone, [m[..., : m.shape[-1] // 2] for m in masks])
    for one, other in zip(padded, single, strict=True):
        torch.testing.assert_close(one[..., : other.shape[-1]], other, atol=1e-5, rtol=1e-5)
