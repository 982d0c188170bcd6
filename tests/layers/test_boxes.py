# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from vastdet.layers.boxes import (
    cxcywh_to_xyxy,
    generalized_iou,
    inverse_sigmoid,
    xyxy_to_cxcywh,
)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed))
    return corners.sort(dim=1).values.flatten(1)


def test_conversions_undo_each_other() -> None:
    boxes = random_boxes(20, 0)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    assert xyxy_to_cxcywh(torch.tensor([1.0, 2.0, 5.0, 10.0])).tolist() == [3.0, 6.0, 4.0, 8.0]
    assert cxcywh_to_xyxy(torch.zeros(0, 4)).shape == (0, 4)


def test_equals_torchvision() -> None:
    boxes, others = random_boxes(20, 0), random_boxes(30, 1)
    iou, giou = generalized_iou(boxes[:, None], others[None])
    # Measured: 6e-8 and 1.2e-7.
    torch.testing.assert_close(iou, box_iou(boxes, others), rtol=0, atol=1e-6)
    torch.testing.assert_close(giou, generalized_box_iou(boxes, others), rtol=0, atol=1e-6)


def test_pairs_without_overlap() -> None:
    left, right = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0])
    iou, giou = generalized_iou(left, right)
    assert iou == 0
    assert giou == -0.5  # a hull of 4, half of it empty


def test_boxes_without_area() -> None:
    point = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert generalized_iou(point, point)[0].isnan()
    iou, giou = generalized_iou(point, point, eps=1e-6)
    assert iou == 0
    assert giou == 0


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_inverse_sigmoid(eps: float) -> None:
    x = torch.linspace(0.01, 0.99, 50)
    torch.testing.assert_close(inverse_sigmoid(x, eps).sigmoid(), x)
    low, high = inverse_sigmoid(torch.tensor([0.0, 1.0]), eps).tolist()
    assert low == pytest.approx(torch.log(torch.tensor(eps)).item())
    assert high == pytest.approx(-low)
    outside = inverse_sigmoid(torch.tensor([-3.0, 7.0]), eps)
    assert outside.tolist() == [low, high]
