# SPDX-License-Identifier: Apache-2.0
from itertools import permutations

import pytest
import torch
from torch import Tensor

from vastdet.detr.matcher import HungarianMatcher, focal_cost
from vastdet.detr.structures import LayerPredictions, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy, generalized_iou


def targets(counts: tuple[int, ...], num_classes: int = 5) -> Targets:
    generator = torch.Generator().manual_seed(0)
    slots = max(1, *counts)
    boxes = 0.2 + 0.3 * torch.rand(len(counts), slots, 4, generator=generator)
    labels = torch.randint(num_classes, (len(counts), slots), generator=generator)
    return Targets(labels, boxes, counts, tuple(f"photo_{i}.jpg" for i in range(len(counts))))


def predictions(num_images: int, num_queries: int, num_layers: int = 2) -> LayerPredictions:
    generator = torch.Generator().manual_seed(1)
    shape = (num_layers, num_images, num_queries)
    return LayerPredictions(
        torch.randn(*shape, 5, generator=generator),
        0.2 + 0.3 * torch.rand(*shape, 4, generator=generator),
    )


def brute_force_cost(logits: Tensor, box: Tensor, label: int, gt_box: Tensor) -> float:
    """The cost of one pair, term by term (Deformable DETR's weights 2, 5, 2)."""
    p = logits[label].sigmoid()
    classes = 0.25 * (1 - p) ** 2 * -torch.log(p + 1e-8)
    classes = classes - 0.75 * p**2 * -torch.log(1 - p + 1e-8)
    _, giou = generalized_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(gt_box))
    return float(2 * classes + 5 * (box - gt_box).abs().sum() - 2 * giou)


def test_the_assignment_is_the_cheapest_of_all() -> None:
    truth, found = targets((3, 1)), predictions(2, 4)
    matched = HungarianMatcher().assign(found, truth)
    assert matched.shape == (2, 2, 4)
    for layer in range(2):
        for image, count in enumerate(truth.num_boxes):
            costs = [
                [
                    brute_force_cost(
                        found.logits[layer, image, q],
                        found.boxes[layer, image, q],
                        int(truth.labels[image, g]),
                        truth.boxes[image, g],
                    )
                    for g in range(count)
                ]
                for q in range(4)
            ]
            best = min(
                permutations(range(4), count),
                key=lambda qs: sum(costs[q][g] for g, q in enumerate(qs)),
            )
            expected = torch.full((4,), -1)
            expected[list(best)] = torch.arange(count)
            assert torch.equal(matched[layer, image], expected)


def test_an_image_without_boxes_matches_nothing() -> None:
    matched = HungarianMatcher().assign(predictions(2, 4), targets((0, 0)))
    assert (matched == -1).all()


def test_more_boxes_than_queries() -> None:
    matched = HungarianMatcher().assign(predictions(1, 2), targets((5,)))
    assert (matched >= 0).all()
    assert all(len(set(layer[0].tolist())) == 2 for layer in matched)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["logits", "boxes"])
def test_predictions_that_are_not_finite_name_the_image(value: float, part: str) -> None:
    found = predictions(2, 4)
    getattr(found, part)[1, 1, 2] = value
    if part == "logits" and value == float("inf"):
        # An infinite logit is a probability of 1: the cost stays finite.
        HungarianMatcher().assign(found, targets((1, 2)))
        return
    with pytest.raises(FloatingPointError, match=r"layer 2 .* 2 boxes of photo_1\.jpg"):
        HungarianMatcher().assign(found, targets((1, 2)))


def test_empty_slots_do_not_matter() -> None:
    truth, found = targets((3, 1)), predictions(2, 4)
    changed = Targets(truth.labels, truth.boxes.clone(), truth.num_boxes, truth.names)
    changed.boxes[1, 1:] = float("nan")
    first, second = (HungarianMatcher().assign(found, t) for t in (truth, changed))
    assert torch.equal(first, second)


def test_focal_cost_prefers_a_likely_class() -> None:
    logits = torch.tensor([[[[-4.0, 0.0, 4.0]]]])
    cost = focal_cost(logits, torch.tensor([[[[0, 1, 2]]]])).flatten()
    assert cost[0] > cost[1] > cost[2]
