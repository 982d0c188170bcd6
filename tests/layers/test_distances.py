# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from vastdet.layers.distances import centerness, giou_from_distances, iou_from_distances


def random_distances(count: int, seed: int) -> Tensor:
    return 0.1 + 9 * torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))


def to_boxes(distances: Tensor, x: float = 20.0, y: float = 30.0) -> Tensor:
    return torch.tensor([x, y, x, y]) + distances * torch.tensor([-1.0, -1.0, 1.0, 1.0])


def test_centerness_is_the_formula_of_the_chapter() -> None:
    distances = random_distances(50, 0)
    expected = [
        math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
        for left, top, right, bottom in distances.tolist()
    ]
    torch.testing.assert_close(centerness(distances), torch.tensor(expected))


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ([3.0, 5.0, 3.0, 5.0], 1.0),
        ([1.0, 1.0, 3.0, 1.0], math.sqrt(1 / 3)),
        ([0.0, 1.0, 3.0, 1.0], 0.0),
        ([0.0, 0.0, 0.0, 0.0], 0.0),
    ],
    ids=["centre", "aside", "border", "no extent"],
)
def test_centerness_of_known_points(distances: list[float], expected: float) -> None:
    assert centerness(torch.tensor(distances)).item() == pytest.approx(expected)


def test_iou_is_the_formula_of_the_chapter() -> None:
    pred, target = random_distances(50, 0), random_distances(50, 1)
    for p, g, iou in zip(
        pred.tolist(), target.tolist(), iou_from_distances(pred, target), strict=True
    ):
        area_p = (p[0] + p[2]) * (p[1] + p[3])
        area_g = (g[0] + g[2]) * (g[1] + g[3])
        width = min(p[0], g[0]) + min(p[2], g[2])
        height = min(p[1], g[1]) + min(p[3], g[3])
        expected = width * height / (area_p + area_g - width * height)
        assert iou.item() == pytest.approx(expected, abs=1e-6)


def test_overlaps_equal_torchvisions() -> None:
    pred, target = random_distances(50, 0), random_distances(50, 1)
    boxes, gt_boxes = to_boxes(pred), to_boxes(target)
    torch.testing.assert_close(
        iou_from_distances(pred, target), box_iou(boxes, gt_boxes).diagonal(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        giou_from_distances(pred, target),
        generalized_box_iou(boxes, gt_boxes).diagonal(),
        atol=1e-5,
        rtol=0,
    )


def test_predictions_that_leave_the_point_out_overlap_as_torchvision_says() -> None:
    target = random_distances(400, 0)
    # Centres up to 24 aside, so that some boxes hold the point, some overlap and some do neither.
    shift = 48 * torch.rand(400, 2, generator=torch.Generator().manual_seed(2)) - 24
    pred = random_distances(400, 1) + torch.cat([-shift, shift], dim=1)
    boxes, gt_boxes = to_boxes(pred), to_boxes(target)
    iou, giou = iou_from_distances(pred, target), giou_from_distances(pred, target)
    outside = pred.amin(dim=1) < 0
    assert 50 < outside.sum() < 400
    assert 50 < (iou[outside] < 1e-6).sum() < outside.sum()
    # Largest difference 7e-7.
    torch.testing.assert_close(iou, box_iou(boxes, gt_boxes).diagonal(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        giou, generalized_box_iou(boxes, gt_boxes).diagonal(), atol=1e-5, rtol=0
    )


def test_a_perfect_prediction_overlaps_fully() -> None:
    distances = random_distances(5, 0)
    torch.testing.assert_close(iou_from_distances(distances, distances), torch.ones(5))
    torch.testing.assert_close(giou_from_distances(distances, distances), torch.ones(5))


@pytest.mark.parametrize("overlap", [iou_from_distances, giou_from_distances])
def test_an_empty_prediction_keeps_value_and_gradient_finite(overlap) -> None:
    pred = torch.zeros(1, 4, requires_grad=True)
    loss = -overlap(pred, torch.ones(1, 4)).clamp(min=1e-9).log()
    loss.backward()
    assert loss.isfinite()
    assert pred.grad.isfinite().all()


def test_gradients_agree_with_finite_differences() -> None:
    pred = random_distances(6, 0).double().requires_grad_()
    target = random_distances(6, 1).double()
    assert torch.autograd.gradcheck(lambda p: iou_from_distances(p, target), pred)
    assert torch.autograd.gradcheck(lambda p: giou_from_distances(p, target), pred)


def test_a_large_smooth_makes_small_boxes_agree() -> None:
    pred, target = torch.tensor([[0.1, 0.1, 0.1, 0.1]]), torch.tensor([[0.2, 0.1, 0.2, 0.1]])
    # Areas 0.04 and 0.08, one inside the other, which is also the box about both.
    assert giou_from_distances(pred, target).item() == pytest.approx(0.5, abs=1e-5)
    assert giou_from_distances(pred, target, 1.0).item() == pytest.approx(1.04 / 1.08, abs=1e-5)
