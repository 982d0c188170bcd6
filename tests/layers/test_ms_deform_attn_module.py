# SPDX-License-Identifier: Apache-2.0
"""The module: where it samples, what its parameters start as, and transformers' module."""

import math

import pytest
import torch
from tests.layers.ms_deform_attn_inputs import LEVELS, POINTS, make, module_and_inputs

from vastdet.layers import MultiScaleDeformableAttention


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("levels", [1, 3])
def test_locations_of_points_and_boxes(size: int, levels: int) -> None:
    module, (query, *_, shapes, _) = module_and_inputs()
    references = torch.rand(2, 5, levels, size)
    locations = module.locate(query, references, shapes)
    offsets = module.sampling_offsets(query).view(2, 5, 4, 7, 2)
    for t, level in enumerate([0, 0, 0, 0, 2, 2, 2]):
        reference = references[:, :, level if levels > 1 else 0]
        if size == 2:
            scale = 1 / shapes[level].flip(0)
        else:
            scale = reference[:, :, None, 2:] * (0.5 / POINTS[level])
        expected = reference[:, :, None, :2] + offsets[:, :, :, t] * scale
        torch.testing.assert_close(locations[:, :, :, t], expected)


def test_the_scale_of_offsets_about_boxes() -> None:
    locations = []
    query, boxes = torch.randn(1, 3, 16), torch.rand(1, 3, 1, 4)
    for options in ({}, {"box_scale": 0.5}, {"box_scale": 1.5}):
        module = MultiScaleDeformableAttention(16, num_heads=2, num_levels=2, **options)
        found = module.locate(query, boxes, torch.tensor([[3, 4], [2, 2]]))
        locations.append(found - boxes[:, :, None, :, :2])
    assert torch.equal(locations[0], locations[1])
    torch.testing.assert_close(locations[2], 3 * locations[1])


def test_initial_offsets_look_around() -> None:
    module = MultiScaleDeformableAttention(16, num_heads=4, num_levels=2, num_points=2)
    bias = module.sampling_offsets.bias.view(4, 2, 2, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(bias[:, 0, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(bias[:, 1, 1], 2 * expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(module.weigh(torch.randn(1, 1, 16)), torch.full((1, 1, 4, 4), 0.25))


def test_padding_counts_as_zero(device: str) -> None:
    module, (query, value, *rest) = module_and_inputs(device=device)
    mask = torch.rand(2, 48, device=device) > 0.5
    other = torch.where(mask[..., None], math.nan, value)
    torch.testing.assert_close(module(query, value, *rest, mask), module(query, other, *rest, mask))


def test_the_module_explains_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads, got 30 and 4"):
        MultiScaleDeformableAttention(30, num_heads=4)
    with pytest.raises(ValueError, match=r"num_points must be one positive number, or 3 numbers"):
        MultiScaleDeformableAttention(32, num_levels=3, num_points=[1, 2])
    module, (query, value, _, *rest) = module_and_inputs()
    with pytest.raises(ValueError, match="reference_points must be"):
        module(query, value, torch.rand(2, 5, 1, 3), *rest)


def test_equals_the_module_of_transformers(device: str) -> None:
    pytest.importorskip("transformers")
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr import modeling_deformable_detr

    config = DeformableDetrConfig(d_model=32, num_feature_levels=3)
    other = modeling_deformable_detr.DeformableDetrMultiscaleDeformableAttention(
        config, num_heads=4, n_points=2
    )
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=3, num_points=2)
    torch.nn.init.normal_(module.sampling_offsets.weight)
    torch.nn.init.normal_(module.attention_weights.weight)
    other.load_state_dict(module.state_dict())
    module.to(device), other.to(device)
    query, value = torch.randn(2, 5, 32, device=device), torch.randn(2, 48, 32, device=device)
    _, shapes, starts, *_ = make(device=device)
    mask = torch.rand(2, 48, device=device) > 0.7
    for size in (2, 4):
        references = torch.rand(2, 5, 3, size, device=device)
        expected = other(
            hidden_states=query,
            attention_mask=~mask,
            encoder_hidden_states=value,
            reference_points=references,
            spatial_shapes=shapes,
            spatial_shapes_list=LEVELS,
            level_start_index=starts,
        )[0]
        # The largest difference was 3e-7.
        torch.testing.assert_close(
            module(query, value, references, shapes, starts, mask), expected, atol=1e-5, rtol=0
        )
