# SPDX-License-Identifier: Apache-2.0
"""The assignment of ATSS against loops over boxes, levels and anchors in double precision."""

import math

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances

from vastdet.models.atss.targets import ATSSTargetAssigner

STRIDES = [8, 16, 32]
NUM_CLASSES = 5


def make_anchors(height: int = 128, width: int = 128, scale: float = 2.0) -> list[Boxes]:
    generator = DefaultAnchorGenerator(
        sizes=[[scale * s] for s in STRIDES], aspect_ratios=[1.0], strides=STRIDES, offset=0.5
    )
    return generator([torch.zeros(1, 1, height // s, width // s) for s in STRIDES])


def make_instances(count: int, seed: int = 0, size: tuple[int, int] = (128, 128)) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    corners = corners * torch.tensor([size[1], size[0]])
    instances = Instances(size)
    instances.gt_boxes = Boxes(corners.flatten(1))
    instances.gt_classes = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
    return instances


def of(*boxes: list[float], size: tuple[int, int] = (128, 128)) -> Instances:
    """Boxes of classes 0, 1, 2, ..."""
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes))
    instances.gt_classes = torch.arange(len(boxes))
    return instances


def iou(one: list[float], other: list[float]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return width * height / (sum(areas) - width * height)


def center(box: list[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def brute_force(anchors: list[Boxes], instances: Instances, topk: int) -> list[int]:
    """Algorithm 1 of the paper: the box of each anchor, or the number of boxes."""
    boxes = instances.gt_boxes.tensor.double().tolist()
    levels = [level.tensor.double().tolist() for level in anchors]
    flat = [anchor for level in levels for anchor in level]
    height, width = instances.image_size
    best = [(-1.0, len(boxes))] * len(flat)
    for i, box in enumerate(boxes):
        candidates, start = [], 0
        for level in levels:
            in_image = [
                j for j, a in enumerate(level) if center(a)[0] < width and center(a)[1] < height
            ]
            in_image.sort(key=lambda j, level=level: math.dist(center(level[j]), center(box)))
            candidates += [start + j for j in in_image[:topk]]
            start += len(level)
        overlaps = [iou(box, flat[j]) for j in candidates]
        mean = sum(overlaps) / len(overlaps)
        spread = math.sqrt(sum((o - mean) ** 2 for o in overlaps) / max(1, len(overlaps) - 1))
        for j, overlap in zip(candidates, overlaps, strict=True):
            x, y = center(flat[j])
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= mean + spread and inside and overlap > best[j][0]:
                best[j] = (overlap, i)
    return [index for _, index in best]


@pytest.mark.parametrize("topk", [1, 9, 300])
@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("size", [(128, 128), (97, 70)])
def test_assignment_equals_brute_force(topk: int, count: int, size: tuple[int, int]) -> None:
    anchors = make_anchors()
    assigner = ATSSTargetAssigner(num_classes=NUM_CLASSES, topk=topk)
    num_positives, wanted_by_two = 0, 0
    for seed in range(4):
        instances = make_instances(count, seed, size)
        matched = assigner.match(anchors, instances)
        assert matched.tolist() == brute_force(anchors, instances, topk)
        num_positives += (matched < count).sum()
        alone = [assigner.match(anchors, instances[[i]]) == 0 for i in range(count)]
        wanted_by_two += (torch.stack(alone).sum(dim=0) > 1).sum()
    assert num_positives > 0
    assert wanted_by_two > 0 or count == 1 or topk == 1, "some anchor must be ambiguous"


def test_classes_and_distances_are_those_of_the_matched_box() -> None:
    anchors, instances = make_anchors(), make_instances(6)
    assigner = ATSSTargetAssigner(num_classes=NUM_CLASSES)
    targets = assigner.assign(anchors, [instances, make_instances(0)])
    matched = assigner.match(anchors, instances)
    positive = matched < len(instances)
    assert (targets.gt_classes[1] == NUM_CLASSES).all()
    assert (targets.gt_classes[0][~positive] == NUM_CLASSES).all()
    assert torch.equal(targets.gt_classes[0][positive], instances.gt_classes[matched[positive]])
    squares = Boxes.cat(anchors).tensor[positive]
    sides = squares[:, 2:3] - squares[:, :1]
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    centers = Boxes(squares).get_centers().repeat(1, 2)
    boxes = centers + signs * sides * targets.gt_distances[0][positive]
    torch.testing.assert_close(boxes, instances.gt_boxes.tensor[matched[positive]])
    assert (targets.gt_distances[0][positive] > 0).all(), "centres lie inside"


def test_no_boxes_leave_background() -> None:
    matched = ATSSTargetAssigner(num_classes=1).match(make_anchors(), make_instances(0))
    assert (matched == 0).all(), "the index after the last of no boxes"


def test_the_highest_overlap_wins_an_ambiguous_anchor() -> None:
    # Both are centred on the anchor of 16 pixels at (36, 36), which is better filled by the second.
    large, small = [20.0, 20.0, 52.0, 52.0], [27.0, 27.0, 45.0, 45.0]
    assigner = ATSSTargetAssigner(num_classes=2)
    for boxes, winner in (((large, small), 1), ((small, large), 0)):
        first = assigner.match(make_anchors(), of(*boxes))[:256].view(16, 16)
        assert first[4, 4] == winner


def test_a_center_outside_the_box_is_never_positive() -> None:
    # A thin box between two rows of centres: its nearest anchors overlap it, but none is inside.
    assigner = ATSSTargetAssigner(num_classes=1)
    thin = of([10.0, 37.0, 90.0, 39.0])
    matched = assigner.match(make_anchors(), thin)
    anchors = Boxes.cat(make_anchors())
    inside = thin.gt_boxes.tensor[0, 1] < anchors.get_centers()[:, 1]
    inside &= anchors.get_centers()[:, 1] < thin.gt_boxes.tensor[0, 3]
    assert not inside.any()
    assert (matched == 1).all()


def test_every_box_of_a_usual_size_gets_an_anchor() -> None:
    assigner = ATSSTargetAssigner(num_classes=1)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        low = 70 * torch.rand(2, generator=generator)
        high = low + 12 + 40 * torch.rand(2, generator=generator)
        matched = assigner.match(make_anchors(), of([*low.tolist(), *high.tolist()]))
        assert (matched == 0).any()


def test_padding_changes_no_target() -> None:
    assigner = ATSSTargetAssigner(num_classes=1)
    instances = make_instances(8, seed=1, size=(96, 96))
    tight = assigner.match(make_anchors(96, 96), instances)
    padded = assigner.match(make_anchors(128, 160), instances)
    start, end = 0, 0
    for stride in STRIDES:
        rows, columns = 128 // stride, 160 // stride
        level = padded[start : start + rows * columns].view(rows, columns)
        n = 96 // stride
        assert torch.equal(level[:n, :n].flatten(), tight[end : end + n * n])
        assert (level[n:] == 8).all()
        assert (level[:, n:] == 8).all()
        start, end = start + rows * columns, end + n * n


def test_one_anchor_in_all() -> None:
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 16.0, 16.0]]))]
    assigner = ATSSTargetAssigner(num_classes=1)
    assert assigner.match(anchors, of([2.0, 2.0, 14.0, 14.0], size=(16, 16))).tolist() == [0]
    # The anchor's centre lies in the padding of an image this small: no candidate is left.
    assert assigner.match(anchors, of([0.0, 0.0, 5.0, 5.0], size=(5, 5))).tolist() == [1]
