# SPDX-License-Identifier: Apache-2.0
"""Boxes as set-prediction detectors use them: CXCYWH, as shares of the image, often as logits.

All functions take boxes on the last axis, with any leading axes.
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size (..., 4) to corners (..., 4), in the same units."""
    center, size = boxes.split(2, dim=-1)
    half = size / 2
    return torch.cat([center - half, center + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners (..., 4) to centre and size (..., 4), in the same units."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """The logit of `x` in [0, 1], with `x` and `1 - x` kept at or above `eps`.

    Codes differ in `eps`: 1e-5 in Deformable DETR, 1e-3 in DINO, where it also bounds how small a
    refined box can be.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def generalized_iou(boxes: Tensor, others: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al., CVPR 2019) of XYXY boxes that broadcast.

    Args:
        boxes: (..., 4).
        others: (..., 4); `boxes[:, None]` and `others[None]` give all pairs.
        eps: added to both divisors; 0 in Deformable DETR and torchvision, 1e-6 in DINO.

    Returns:
        IoU in [0, 1] and generalised IoU in [-1, 1], both (...); NaN for a pair without area when
        `eps` is 0.
    """
    low, high = boxes.split(2, dim=-1)
    other_low, other_high = others.split(2, dim=-1)
    area = (high - low).prod(dim=-1)
    other_area = (other_high - other_low).prod(dim=-1)
    shared = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0)
    intersection = shared.prod(dim=-1)
    union = area + other_area - intersection
    hull = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).clamp(min=0)
    hull_area = hull.prod(dim=-1)
    iou = intersection / (union + eps)
    return iou, iou - (hull_area - union) / (hull_area + eps)
