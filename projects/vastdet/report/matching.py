# SPDX-License-Identifier: Apache-2.0
"""Which detections are right, and the score threshold that balances precision and recall.

Shapes: G ground-truth boxes, D detections, of one image. Boxes are XYXY absolute pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from torch import Tensor

UNMATCHED, IGNORED = -1, -2
IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class OperatingPoint:
    """Precision and recall (0-1) of the detections that score at least `threshold`."""

    threshold: float
    precision: float
    recall: float


def match_detections(
    gt_boxes: Tensor,
    gt_classes: Tensor,
    crowd_boxes: Tensor,
    pred_boxes: Tensor,
    pred_classes: Tensor,
    scores: Tensor,
    iou_threshold: float = IOU_THRESHOLD,
) -> Tensor:
    """Assign each detection to a ground-truth box of its class, the best score first.

    A detection takes the free box it overlaps most, given an IoU of at least `iou_threshold`, as
    COCO's evaluation does. Because a higher score never looks at a lower one, the assignment of
    the detections above any score threshold is the same as without the others.

    Returns:
        D indices into the G boxes; UNMATCHED (-1) for a false detection, IGNORED (-2) for an
        unmatched one that lies by at least `iou_threshold` of its area in a crowd region.
    """
    matched = torch.full((len(scores),), UNMATCHED)
    overlaps = pairwise_iou(Boxes(pred_boxes), Boxes(gt_boxes))
    overlaps[pred_classes[:, None] != gt_classes[None, :]] = 0
    for d in scores.argsort(descending=True, stable=True).tolist():
        if len(gt_boxes) == 0:
            break
        best, g = overlaps[d].max(dim=0)
        if best >= iou_threshold:
            matched[d] = g
            overlaps[:, g] = 0
    if len(crowd_boxes) and len(pred_boxes):
        inside = pairwise_ioa(Boxes(crowd_boxes), Boxes(pred_boxes)).amax(dim=0) >= iou_threshold
        matched[(matched == UNMATCHED) & inside] = IGNORED
    return matched


def best_operating_point(
    scores: Tensor, correct: Tensor, num_objects: int
) -> OperatingPoint | None:
    """The threshold, cut to two decimals, where F1 of all images together is highest.

    Args:
        scores: scores of every detection that counts.
        correct: for each, whether it is matched.
        num_objects: ground-truth boxes in all.

    Returns:
        None where nothing was right at any threshold.
    """
    if num_objects == 0 or not bool(correct.any()):
        return None
    order = scores.argsort(descending=True, stable=True)
    true_positives = correct[order].cumsum(0)
    num_kept = torch.arange(1, len(order) + 1)
    f1 = 2 * true_positives / (num_kept + num_objects)
    threshold = int(scores[order][f1.argmax()].item() * 100) / 100
    return operating_point(scores, correct, num_objects, threshold)


def operating_point(
    scores: Tensor, correct: Tensor, num_objects: int, threshold: float
) -> OperatingPoint:
    """Precision and recall at a given threshold; 0 where nothing is kept or nothing is there."""
    kept = scores >= threshold
    right = float((correct & kept).sum())
    return OperatingPoint(threshold, right / max(int(kept.sum()), 1), right / max(num_objects, 1))


def evenly_spaced(num_items: int, num_wanted: int) -> Iterable[int]:
    """At most `num_wanted` different indices spread over range(num_items), ascending."""
    num = min(num_items, num_wanted)
    return (i * num_items // num for i in range(num))
