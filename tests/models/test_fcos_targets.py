# SPDX-License-Identifier: Apache-2.0
"""The assignment of FCOS against loops over locations and boxes, and against torchvision."""

import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.models import detection

from vastdet.models.fcos.targets import FCOSTargetAssigner
from vastdet.one_stage.targets import SIDE_DISTANCES

STRIDES = [8, 16, 32]
SIZE = 128
NUM_CLASSES = 5


def make_anchors(offset: float = 0.5) -> list[Boxes]:
    generator = DefaultAnchorGenerator(
        sizes=[[s] for s in STRIDES], aspect_ratios=[1.0], strides=STRIDES, offset=offset
    )
    return generator([torch.zeros(1, 1, SIZE // s, SIZE // s) for s in STRIDES])


def make_instances(count: int, seed: int = 0) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    corners = SIZE * torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    instances = Instances((SIZE, SIZE))
    instances.gt_boxes = Boxes(corners.flatten(1))
    instances.gt_classes = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
    return instances


def brute_force(
    instances: Instances, bounds: list[float], radius: float
) -> tuple[list[int], list[list[float]]]:
    """Class and pixel distances of each location, by the text of sections 14.5.1 and 14.5.2."""
    boxes = instances.gt_boxes.tensor.tolist()
    classes, distances = [], []
    for level, stride in enumerate(STRIDES):
        low, high = [0, *bounds, math.inf][level : level + 2]
        for row in range(SIZE // stride):
            for column in range(SIZE // stride):
                x, y = column * stride + stride / 2, row * stride + stride / 2
                best, best_area = None, math.inf
                for i, (x0, y0, x1, y1) in enumerate(boxes):
                    sides = [x - x0, y - y0, x1 - x, y1 - y]
                    off = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2))
                    suits = min(sides) > 0 and low < max(sides) <= high
                    central = radius == 0 or off < radius * stride
                    area = (x1 - x0) * (y1 - y0)
                    if suits and central and area < best_area:
                        best, best_area = (i, sides), area
                classes.append(NUM_CLASSES if best is None else int(instances.gt_classes[best[0]]))
                distances.append([math.nan] * 4 if best is None else best[1])
    return classes, distances


def strides_of_locations() -> Tensor:
    return torch.cat([torch.full(((SIZE // s) ** 2,), float(s)) for s in STRIDES])


@pytest.mark.parametrize("radius", [0.0, 1.5])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_assignment_equals_brute_force(radius: float, count: int) -> None:
    bounds = [24.0, 56.0]
    assigner = FCOSTargetAssigner(
        num_classes=NUM_CLASSES, sizes_of_interest=bounds, center_sampling_radius=radius
    )
    batch = [make_instances(count, seed) for seed in range(3)]
    targets = assigner.assign(make_anchors(), batch)
    for i, instances in enumerate(batch):
        classes, distances = brute_force(instances, bounds, radius)
        assert targets.gt_classes[i].tolist() == classes
        positive = targets.gt_classes[i] < NUM_CLASSES
        in_pixels = targets.gt_distances[i] * strides_of_locations()[:, None]
        torch.testing.assert_close(in_pixels[positive], torch.tensor(distances)[positive])
    if count == 12:
        levels = (targets.gt_classes < NUM_CLASSES).any(0).split([256, 64, 16])
        assert all(level.any() for level in levels), "the case must exercise each level"


def test_the_bounds_of_a_level_are_open_below_and_closed_above() -> None:
    # Locations of stride 8 and 16 at (24, 24) and (20, 20) share this box of largest side 24.
    instances = Instances((SIZE, SIZE))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 40.0, 40.0]]))
    instances.gt_classes = torch.tensor([2])
    assigner = FCOSTargetAssigner(num_classes=NUM_CLASSES, sizes_of_interest=[20.0, 56.0])
    targets = assigner.assign(make_anchors(), [instances])
    first, second, _ = targets.gt_classes[0].split([256, 64, 16])
    # Centre (20, 20): largest distance exactly 20, hence on the first level.
    assert first.view(16, 16)[2, 2] == 2
    assert (first == 2).sum() == 1
    # (24, 24) on the second level: 24 is beyond the bound.
    assert second.view(8, 8)[1, 1] == 2


def test_the_smallest_box_wins() -> None:
    instances = Instances((SIZE, SIZE))
    instances.gt_boxes = Boxes(
        torch.tensor([[0.0, 0, 60, 60], [10.0, 10, 50, 50], [0.0, 0, 64, 64]])
    )
    instances.gt_classes = torch.tensor([0, 1, 2])
    assigner = FCOSTargetAssigner(num_classes=NUM_CLASSES, sizes_of_interest=[512.0, 1024.0])
    classes = assigner.assign(make_anchors(), [instances]).gt_classes[0, :256].view(16, 16)
    assert classes[3, 3] == 1
    assert classes[0, 0] == 0
    assert classes[7, 7] == 2
    assert classes[8, 8] == NUM_CLASSES


def test_decoding_the_targets_gives_the_boxes_back() -> None:
    instances = make_instances(6)
    assigner = FCOSTargetAssigner(num_classes=NUM_CLASSES, sizes_of_interest=[24.0, 56.0])
    anchors = make_anchors()
    targets = assigner.assign(anchors, [instances])
    positive = targets.gt_classes[0] < NUM_CLASSES
    boxes = SIDE_DISTANCES.apply_deltas(
        targets.gt_distances[0][positive], Boxes.cat(anchors).tensor[positive]
    )
    gap = torch.cdist(boxes, instances.gt_boxes.tensor, p=float("inf")).amin(dim=1)
    assert len(boxes) > 10
    assert gap.max() < 1e-4


@pytest.mark.parametrize("count", [1, 15])
def test_assignment_equals_torchvisions(count: int) -> None:
    # torchvision ties the bounds to the strides: level i takes sizes of 4 to 8 strides.
    anchors = make_anchors(offset=0.0)
    instances = make_instances(count, seed=3)
    seen = {}
    head = SimpleNamespace(
        compute_loss=lambda targets, outputs, anchors, matched: seen.update(matched=matched[0])
    )
    detection.FCOS.compute_loss(
        SimpleNamespace(head=head, center_sampling_radius=1.5),
        [{"boxes": instances.gt_boxes.tensor, "labels": instances.gt_classes}],
        {},
        [Boxes.cat(anchors).tensor],
        [len(a) for a in anchors],
    )
    assigner = FCOSTargetAssigner(
        num_classes=NUM_CLASSES, sizes_of_interest=[64.0, 128.0], center_sampling_radius=1.5
    )
    ours = assigner.assign(anchors, [instances]).gt_classes[0]
    matched = seen["matched"]
    theirs = torch.where(matched < 0, NUM_CLASSES, instances.gt_classes[matched.clamp(min=0)])
    assert torch.equal(ours, theirs)
    assert (ours < NUM_CLASSES).any()
