# SPDX-License-Identifier: Apache-2.0
"""Adaptive training sample selection (ATSS, algorithm 1).

R anchors of all levels, M ground-truth boxes of an image, C candidates of a box.
"""

import math

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou, pairwise_point_box_distance
from torch import Tensor

from vastdet.one_stage.targets import LocationAssigner

# Pixels by which an anchor's centre must lie inside a box (the authors' atss/loss.py).
MIN_DISTANCE_INSIDE = 0.01


class ATSSTargetAssigner(LocationAssigner):
    """Gives a box those of its nearest anchors that overlap it more than is usual among them."""

    def __init__(self, *, num_classes: int, topk: int = 9) -> None:
        """Set the rule.

        Args:
            num_classes: K, also the background label.
            topk: anchors of each level that are candidates for a box, at least 1.
        """
        super().__init__(num_classes)
        self.topk = topk

    def match(self, anchors: list[Boxes], instances: Instances) -> Tensor:
        """The box of each anchor of one image, (R,) in [0, M], M for background.

        Candidates of a box are the `topk` anchors of each level whose centres are nearest to its
        own. Positive are those whose IoU with it reaches the mean plus the standard deviation
        (n - 1) of the candidates' and whose centres lie inside it; of several boxes an anchor takes
        the one that it overlaps most. Anchors whose centres lie in the padding are no candidates,
        so that an image's targets do not depend on the batch.

        Args:
            anchors: per level, XYXY input pixels.
            instances: `gt_boxes`, XYXY input pixels; its image size ends the padding.
        """
        gt_boxes = instances.gt_boxes
        every = Boxes.cat(anchors)
        centers = every.get_centers()
        height, width = instances.image_size
        in_padding = (centers[:, 0] >= width) | (centers[:, 1] >= height)
        distances = torch.cdist(
            gt_boxes.get_centers(), centers, compute_mode="donot_use_mm_for_euclid_dist"
        ).masked_fill(in_padding, math.inf)
        candidates = self._nearest(distances, [len(level) for level in anchors])

        ious = pairwise_iou(gt_boxes, every).gather(1, candidates)
        real = distances.gather(1, candidates).isfinite()
        inside = pairwise_point_box_distance(centers, gt_boxes).amin(dim=2).T > MIN_DISTANCE_INSIDE
        positive = real & (ious >= _threshold(ious, real)) & inside.gather(1, candidates)

        # The last row stands for background: no box that wants the anchor overlaps it less.
        overlaps = distances.new_full((len(gt_boxes) + 1, len(every)), -1.0)
        overlaps[-1] = -0.5
        overlaps[:-1].scatter_(1, candidates, ious.masked_fill(~positive, -1.0))
        return overlaps.argmax(dim=0)

    def _nearest(self, distances: Tensor, level_sizes: list[int]) -> Tensor:
        """Indices (M, C) of the nearest anchors of each level; of distances (M, R)."""
        nearest, start = [], 0
        for size, level in zip(level_sizes, distances.split(level_sizes, dim=1), strict=True):
            nearest.append(start + level.topk(min(self.topk, size), dim=1, largest=False).indices)
            start += size
        return torch.cat(nearest, dim=1)


def _threshold(ious: Tensor, real: Tensor) -> Tensor:
    """Mean plus standard deviation of the real entries of each row, (M, C) x 2 -> (M, 1)."""
    count = real.sum(dim=1, keepdim=True)
    mean = (ious * real).sum(dim=1, keepdim=True) / count.clamp(min=1)
    squares = ((ious - mean) ** 2 * real).sum(dim=1, keepdim=True)
    return mean + (squares / (count - 1).clamp(min=1)).sqrt()
