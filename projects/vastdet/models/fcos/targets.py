# SPDX-License-Identifier: Apache-2.0
"""Which box each location of the pyramid answers for (FCOS, sections 3.1 and 3.2).

B images, R locations of all levels, M ground-truth boxes of an image, K classes.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.structures import Boxes, Instances, pairwise_point_box_distance
from torch import Tensor


class LocationTargets(NamedTuple):
    """Targets of all locations of a batch."""

    gt_classes: Tensor  # (B, R) in [0, K], K for background
    gt_distances: Tensor  # (B, R, 4) left, top, right, bottom in strides; meaningless on background


class FCOSTargetAssigner:
    """Gives a location the smallest box that contains it and suits its level."""

    def __init__(
        self,
        *,
        num_classes: int,
        sizes_of_interest: list[float],
        center_sampling_radius: float = 0.0,
    ) -> None:
        """Set the rule.

        Args:
            num_classes: K, also the background label.
            sizes_of_interest: increasing bounds in pixels between one level and the next. Level i
                takes a box if the largest distance to its sides is in (bound i-1, bound i].
            center_sampling_radius: 0 takes all locations inside a box, r > 0 only those within
                r strides of its centre, horizontally and vertically.
        """
        self.num_classes = num_classes
        self.bounds = [0.0, *map(float, sizes_of_interest), math.inf]
        self.center_sampling_radius = center_sampling_radius
        self.transform = Box2BoxTransformLinear(normalize_by_size=True)

    @torch.no_grad()
    def assign(self, anchors: list[Boxes], gt_instances: list[Instances]) -> LocationTargets:
        """Assign a batch.

        Args:
            anchors: per level, squares of one stride about the locations, XYXY input pixels.
            gt_instances: per image, `gt_boxes` (XYXY input pixels) and `gt_classes`.
        """
        assert len(anchors) == len(self.bounds) - 1, "one size range a level"
        all_anchors = torch.cat([a.tensor for a in anchors])
        ranges = torch.cat(
            [
                a.tensor.new_tensor([low, high]).expand(len(a), 2)
                for a, (low, high) in zip(anchors, pairwise(self.bounds), strict=True)
            ]
        )
        classes, distances = [], []
        for instances in gt_instances:
            # The last row stands for background.
            gt_boxes = torch.cat([instances.gt_boxes.tensor, all_anchors.new_zeros(1, 4)])
            gt_classes = instances.gt_classes.new_full((len(instances) + 1,), self.num_classes)
            gt_classes[:-1] = instances.gt_classes
            matched = self._match(all_anchors, ranges, instances.gt_boxes)
            classes.append(gt_classes[matched])
            distances.append(self.transform.get_deltas(all_anchors, gt_boxes[matched]))
        return LocationTargets(torch.stack(classes), torch.stack(distances))

    def _match(self, anchors: Tensor, ranges: Tensor, gt_boxes: Boxes) -> Tensor:
        """The box of each location, (R,) in [0, M], M for background."""
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        distances = pairwise_point_box_distance(centers, gt_boxes)
        farthest = distances.amax(dim=2)
        matches = distances.amin(dim=2) > 0
        matches &= (farthest > ranges[:, :1]) & (farthest <= ranges[:, 1:])
        if self.center_sampling_radius > 0:
            offsets = (centers[:, None] - gt_boxes.get_centers()[None]).abs().amax(dim=2)
            strides = anchors[:, 2:3] - anchors[:, 0:1]
            matches &= offsets < self.center_sampling_radius * strides
        areas = gt_boxes.area().expand(len(anchors), -1).masked_fill(~matches, math.inf)
        # The infinite column lets min work on an image without boxes.
        areas = torch.cat([areas, areas.new_full((len(anchors), 1), math.inf)], dim=1)
        smallest, matched = areas.min(dim=1)
        return matched.masked_fill(smallest.isinf(), len(gt_boxes))
