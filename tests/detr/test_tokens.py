# SPDX-License-Identifier: Apache-2.0
"""Tokens against loops over levels and cells, with and without padding."""

import pytest
import torch
from detectron2.structures import ImageList

from vastdet.detr.tokens import (
    Tokens,
    flatten_maps,
    pad_to_batch,
    padding_mask_of,
    resize_mask,
    valid_ratio,
)

SIZES = [(4, 6), (2, 3), (1, 1)]


@pytest.mark.parametrize("divisibility", [0, 1, 32])
def test_batches_are_padded_as_detectron2_does(divisibility: int) -> None:
    images = [torch.rand(3, 20, 33), torch.rand(3, 40, 7)]
    expected = ImageList.from_tensors(images, divisibility).tensor
    assert torch.equal(pad_to_batch(images, divisibility), expected)


def tokens_of(masks: list[torch.Tensor]) -> tuple[Tokens, list[torch.Tensor]]:
    batch = len(masks[0])
    maps = [torch.randn(batch, 5, *size) for size in SIZES]
    positions = [torch.randn(batch, *size, 5) for size in SIZES]
    return flatten_maps(maps, masks, positions), maps


def no_padding(batch: int = 2) -> list[torch.Tensor]:
    return [torch.zeros(batch, *size, dtype=torch.bool) for size in SIZES]


def padded() -> list[torch.Tensor]:
    masks = no_padding()
    masks[0][1, 2:], masks[0][1, :, 3:] = True, True
    masks[1][1, 1:], masks[1][1, :, 2:] = True, True
    return masks


def test_tokens_go_level_by_level_row_by_row() -> None:
    masks = padded()
    tokens, maps = tokens_of(masks)
    i = 0
    for level, (height, width) in enumerate(SIZES):
        assert tokens.level_start_index[level] == i
        for y in range(height):
            for x in range(width):
                assert torch.equal(tokens.values[:, i], maps[level][:, :, y, x])
                assert torch.equal(tokens.padding_mask[:, i], masks[level][:, y, x])
                i += 1
    assert tokens.values.shape == tokens.positions.shape == (2, i, 5)
    assert tokens.spatial_shapes.tolist() == [list(size) for size in SIZES]
    assert tokens.sizes == tuple(SIZES)


def test_an_empty_batch() -> None:
    tokens, _ = tokens_of(no_padding(0))
    assert tokens.values.shape == (0, 31, 5)
    assert tokens.valid_ratios.shape == (0, 3, 2)
    assert tokens.cell_references().shape == (0, 31, 3, 2)


def test_valid_ratios_of_a_padded_image() -> None:
    tokens, _ = tokens_of(padded())
    assert torch.equal(tokens.valid_ratios[0], torch.ones(3, 2))
    expected = torch.tensor([[3 / 6, 2 / 4], [2 / 3, 1 / 2], [1.0, 1.0]])
    torch.testing.assert_close(tokens.valid_ratios[1], expected)


def test_centers_are_divided_by_whole_numbers_of_cells() -> None:
    # 50 valid columns of 97: 0.5 / 50 lies on the bound of valid proposals, 0.01.
    for width in range(50, 400):
        masks = [torch.ones(1, 1, width, dtype=torch.bool)]
        masks[0][..., :50] = False
        maps = [torch.zeros(1, 1, 1, width)]
        (centers,) = flatten_maps(maps, masks, [torch.zeros(1, 1, width, 1)]).cell_centers()
        expected = (torch.arange(width) + 0.5) / torch.tensor(50.0)
        assert torch.equal(centers[0, :, 0], expected)


def test_cell_centers_and_references_equal_loops() -> None:
    tokens, _ = tokens_of(padded())
    centers, references = torch.cat(tokens.cell_centers(), dim=1), tokens.cell_references()
    i = 0
    for level, (height, width) in enumerate(SIZES):
        for y in range(height):
            for x in range(width):
                for image in range(2):
                    across, down = tokens.valid_ratios[image, level].tolist()
                    center = [(x + 0.5) / (across * width), (y + 0.5) / (down * height)]
                    assert centers[image, i].tolist() == pytest.approx(center)
                    for other in range(3):
                        ratio = tokens.valid_ratios[image, other].tolist()
                        expected = [c * r for c, r in zip(center, ratio, strict=True)]
                        assert references[image, i, other].tolist() == pytest.approx(expected)
                i += 1


@pytest.mark.parametrize("width", [2, 4])
def test_level_references_scale_points_and_boxes(width: int) -> None:
    tokens, _ = tokens_of(padded())
    boxes = torch.rand(2, 7, width)
    references = tokens.level_references(boxes)
    assert references.shape == (2, 7, 3, width)
    for level in range(3):
        ratio = tokens.valid_ratios[:, level].repeat(1, width // 2)
        torch.testing.assert_close(references[:, :, level], boxes * ratio[:, None])


def test_with_values_keeps_the_rest() -> None:
    tokens, _ = tokens_of(no_padding())
    other = tokens.with_values(tokens.values + 1)
    assert torch.equal(other.values, tokens.values + 1)
    assert other.positions is tokens.positions
    assert other.sizes == tokens.sizes


def test_padding_mask_of_odd_sizes() -> None:
    mask = padding_mask_of([(3, 5), (2, 7), (1, 1)], (3, 7))
    for image, (height, width) in zip(mask, [(3, 5), (2, 7), (1, 1)], strict=True):
        for y in range(3):
            for x in range(7):
                assert image[y, x] == (y >= height or x >= width)


def test_resize_mask_takes_the_nearest_cell_rounded_down() -> None:
    mask = padding_mask_of([(5, 9), (7, 4)], (7, 9))
    small = resize_mask(mask, (3, 4))
    assert small.dtype == torch.bool
    for y in range(3):
        for x in range(4):
            assert torch.equal(small[:, y, x], mask[:, y * 7 // 3, x * 9 // 4])


def test_valid_ratio_is_width_then_height() -> None:
    mask = padding_mask_of([(2, 3)], (4, 4))
    assert valid_ratio(mask).tolist() == [[0.75, 0.5]]
