# SPDX-License-Identifier: Apache-2.0
"""Boxes as distances (left, top, right, bottom) from a point inside them.

All functions take distances of shape (..., 4) in any one unit (pixels or strides). Predicted and
ground-truth distances are measured from the same point, which lies inside the ground truth;
predicted ones are negative where it lies outside their box. No box is turned inside out.
"""

import torch
from torch import Tensor

# Far below any real area (square strides or pixels); keeps log and division finite.
EPSILON = 1e-7


def centerness(distances: Tensor) -> Tensor:
    """Centre-ness sqrt(min(l,r)/max(l,r) * min(t,b)/max(t,b)), (..., 4) -> (...) in [0, 1].

    FCOS (Tian et al. 2019), equation 3. 1 at the centre of the box, 0 on its border.
    """
    left, top, right, bottom = distances.unbind(-1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right).clamp(min=EPSILON)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom).clamp(min=EPSILON)
    return (horizontal * vertical).clamp(min=0).sqrt()


def _overlap(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union."""
    left, top, right, bottom = torch.minimum(pred, target).unbind(-1)
    # Without overlap a side is negative: only a prediction that leaves the point out can do that.
    intersection = (left + right).clamp(min=0) * (top + bottom).clamp(min=0)
    return intersection, _area(pred) + _area(target) - intersection


def _area(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(-1)
    return (left + right) * (top + bottom)


def iou_from_distances(pred: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of boxes about the same point, (..., 4) x 2 -> (...) in (0, 1]."""
    intersection, union = _overlap(pred, target)
    return (intersection + EPSILON) / (union + EPSILON)


def giou_from_distances(pred: Tensor, target: Tensor, smooth: float = EPSILON) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) about the same point, (..., 4) x 2 -> (...).

    In (-1, 1]: IoU less the share of the smallest enclosing box that the union leaves empty.
    `smooth`, an area, is added to intersection and union before they are divided; where it is
    large, boxes of less than that area all but agree.
    """
    intersection, union = _overlap(pred, target)
    enclosing = _area(torch.maximum(pred, target))
    empty = (enclosing - union) / (enclosing + EPSILON)
    return (intersection + smooth) / (union + smooth) - empty
