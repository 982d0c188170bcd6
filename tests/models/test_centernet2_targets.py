# SPDX-License-Identifier: Apache-2.0
"""Heatmaps, peaks and distances of CenterNet2 against loops over locations and boxes."""

import math
from collections import Counter

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances
from torch import Tensor

from vastdet.models.centernet2.targets import CenterTargetAssigner, CenterTargets

STRIDES = [8, 16, 32]
WIDTH, HEIGHT = 128, 96
RANGES: list[list[float]] = [[0, 24], [16, 48], [40, 10000000]]
COUNTS = [WIDTH // s * (HEIGHT // s) for s in STRIDES]


def make_anchors() -> list[Boxes]:
    generator = DefaultAnchorGenerator(
        sizes=[[s] for s in STRIDES], aspect_ratios=[1.0], strides=STRIDES, offset=0.5
    )
    return generator([torch.zeros(1, 1, HEIGHT // s, WIDTH // s) for s in STRIDES])


def make_instances(boxes: Tensor) -> Instances:
    instances = Instances((HEIGHT, WIDTH))
    instances.gt_boxes = Boxes(boxes.reshape(-1, 4))
    return instances


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    return (corners * torch.tensor([WIDTH, HEIGHT])).flatten(1)


def assign(*boxes: Tensor, min_radius: float = 4.0) -> CenterTargets:
    assigner = CenterTargetAssigner(sizes_of_interest=RANGES, min_radius=min_radius)
    return assigner.assign(make_anchors(), [make_instances(b) for b in boxes])


def brute_force(
    boxes: list[list[float]], min_radius: float
) -> tuple[list[float], Counter[int], list[list[float] | None]]:
    """Heat of each location, peaks at each location, distances in strides or None."""
    heats: list[float] = []
    peaks: Counter[int] = Counter()
    distances: list[list[float] | None] = []
    for (low, high), stride in zip(RANGES, STRIDES, strict=True):
        for row in range(HEIGHT // stride):
            for column in range(WIDTH // stride):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                heat, closest, target = 0.0, math.inf, None
                for x0, y0, x1, y1 in boxes:
                    center_x, center_y = (x0 + x1) / 2, (y0 + y1) / 2
                    off_x, off_y = column - center_x // stride, row - center_y // stride
                    suits = low <= math.hypot(x1 - x0, y1 - y0) / 2 <= high
                    ninth = (1 - 0.8) / (1 + 0.8)
                    radius2 = max(2 * ninth**2 * (x1 - x0) * (y1 - y0), min_radius**2)
                    gap = ((x - center_x) ** 2 + (y - center_y) ** 2) / radius2
                    if off_x == off_y == 0:
                        gap = 0.0
                        peaks[len(heats)] += suits
                    heat = max(heat, math.exp(-gap))
                    sides = [x - x0, y - y0, x1 - x, y1 - y]
                    near = max(abs(off_x), abs(off_y)) <= 1 and min(sides) > 0
                    if suits and near and gap < closest:
                        closest, target = gap, [side / stride for side in sides]
                heats.append(heat if heat >= 1e-4 else 0.0)
                distances.append(target)
    return heats, +peaks, distances


@pytest.mark.parametrize("min_radius", [1.0, 4.0])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_targets_equal_brute_force(count: int, min_radius: float) -> None:
    batch = [random_boxes(count, seed) for seed in range(3)]
    targets = assign(*batch, min_radius=min_radius)
    for image, boxes in enumerate(batch):
        heats, peaks, distances = brute_force(boxes.tolist(), min_radius)
        # Measured: 1.2e-7.
        torch.testing.assert_close(
            targets.heatmaps[image], torch.tensor(heats), atol=1e-6, rtol=1e-5
        )
        of_image = targets.peaks[0] == image
        assert Counter(targets.peaks[1][of_image].tolist()) == peaks
        assert targets.regressed[image].tolist() == [d is not None for d in distances]
        wanted = torch.tensor([d for d in distances if d is not None]).reshape(-1, 4)
        torch.testing.assert_close(
            targets.gt_distances[image][targets.regressed[image]], wanted, atol=1e-5, rtol=1e-5
        )
    if count == 12:
        levels = targets.regressed.any(0).split(COUNTS)
        assert all(level.any() for level in levels), "the case must exercise each level"


def test_an_image_without_boxes_is_all_background() -> None:
    targets = assign(torch.zeros(0, 4), random_boxes(3, 0))
    assert not targets.heatmaps[0].any()
    assert not targets.regressed[0].any()
    assert targets.peaks[0].tolist() == [1] * len(targets.peaks[1])
    assert targets.heatmaps[1].any()


def test_a_box_in_two_ranges_has_two_peaks_and_two_boxes_in_a_cell_too() -> None:
    # Half diagonals 20 and 20.5: on the first level, up to 24, and on the second, from 16.
    box = torch.tensor([[44.0, 34.0, 76.0, 58.0], [43.5, 33.75, 76.5, 58.25]])
    targets = assign(box)
    first, second, third = (torch.bincount(targets.peaks[1], minlength=sum(COUNTS))).split(COUNTS)
    assert first.view(12, 16)[5, 7] == first.sum() == 2
    assert second.view(6, 8)[2, 3] == second.sum() == 2
    assert third.sum() == 0
    # A peak fades on every level, so that levels that it does not belong to are not held against.
    heat = targets.heatmaps[0].split(COUNTS)
    assert heat[0].view(12, 16)[5, 7] == heat[1].view(6, 8)[2, 3] == heat[2].view(3, 4)[1, 1] == 1


@pytest.mark.parametrize(("half", "levels"), [(16.0, 2), (24.0, 2), (15.99, 1), (24.01, 1)])
def test_ranges_hold_both_their_ends(half: float, levels: int) -> None:
    # A box of sides 3 : 4 has half the diagonal of 5 / 2.
    side = 2 * half / 5
    box = torch.tensor([[60 - 2 * side, 50 - 1.5 * side, 60 + 2 * side, 50 + 1.5 * side]])
    assert len(assign(box).peaks[0]) == levels


def test_heat_follows_the_radius_of_the_overlap() -> None:
    # A square of 80 pixels: the radius is the diagonal of a shift of 80 / 9.
    box = torch.tensor([[20.0, 4.0, 100.0, 84.0]])
    heat = assign(box).heatmaps[0][: COUNTS[0]].view(12, 16)
    assert heat[5, 7] == 1  # its cell holds the centre (60, 44)
    expected = math.exp(-(12**2) / (2 * (80 / 9) ** 2))
    # The middle of the cell on the right is (68, 44), that after the next (76, 44).
    assert heat[5, 9].item() == pytest.approx(math.exp(-(16**2) / (2 * (80 / 9) ** 2)), abs=1e-6)
    assert heat[5, 8].item() > expected > heat[5, 9].item()


def test_the_box_whose_centre_is_closest_for_its_size_gives_the_distances() -> None:
    # Their cells are neighbours; between them, both would do.
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [18.0, 10.0, 46.0, 38.0]])
    targets = assign(boxes)
    cell = 3 * 16 + 3  # its middle is (28, 28); the centres are (24, 24) and (32, 24)
    for order in (boxes, boxes.flip(0)):
        targets = assign(order)
        assert targets.regressed[0, cell]
    large, small = 2 * 32**2 / 81, 2 * 28**2 / 81
    assert (4**2 + 4**2) / large < (4**2 + 4**2) / small
    # The centre (32, 24) lies in the next column and row 3, (24, 24) in column 3, row 3: a peak.
    wanted = torch.tensor([20.0, 20.0, 12.0, 12.0]) / 8
    torch.testing.assert_close(targets.gt_distances[0, cell], wanted)


def test_a_centre_on_the_lower_border_of_the_grid_has_no_peak() -> None:
    targets = assign(torch.tensor([[120.0, 90.0, 136.0, 102.0]]))
    assert len(targets.peaks[0]) == 0
    assert targets.heatmaps.max() < 1
