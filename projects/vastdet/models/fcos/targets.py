# SPDX-License-Identifier: Apache-2.0
"""Which box each location of the pyramid answers for (FCOS, sections 3.1 and 3.2).

R locations of all levels, M ground-truth boxes of an image, K classes.
"""

import math
from itertools import pairwise

import torch
from detectron2.structures import Boxes, Instances, pairwise_point_box_distance
from torch import Tensor

from vastdet.one_stage.targets import LocationAssigner


class FCOSTargetAssigner(LocationAssigner):
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
        super().__init__(num_classes)
        self.bounds = [0.0, *map(float, sizes_of_interest), math.inf]
        self.center_sampling_radius = center_sampling_radius

    def match(self, anchors: list[Boxes], instances: Instances) -> Tensor:
        """The box of each location of one image, (R,) in [0, M], M for background.

        Args:
            anchors: per level, squares of one stride about the locations, XYXY input pixels.
            instances: `gt_boxes`, XYXY input pixels.
        """
        assert len(anchors) == len(self.bounds) - 1, "one size range a level"
        gt_boxes = instances.gt_boxes
        squares = torch.cat([a.tensor for a in anchors])
        ranges = torch.cat(
            [
                a.tensor.new_tensor([low, high]).expand(len(a), 2)
                for a, (low, high) in zip(anchors, pairwise(self.bounds), strict=True)
            ]
        )
        centers = (squares[:, :2] + squares[:, 2:]) / 2
        distances = pairwise_point_box_distance(centers, gt_boxes)
        farthest = distances.amax(dim=2)
        matches = distances.amin(dim=2) > 0
        matches &= (farthest > ranges[:, :1]) & (farthest <= ranges[:, 1:])
        if self.center_sampling_radius > 0:
            offsets = (centers[:, None] - gt_boxes.get_centers()[None]).abs().amax(dim=2)
            strides = squares[:, 2:3] - squares[:, 0:1]
            matches &= offsets < self.center_sampling_radius * strides
        areas = gt_boxes.area().expand(len(squares), -1).masked_fill(~matches, math.inf)
        # The infinite column lets min work on an image without boxes.
        areas = torch.cat([areas, areas.new_full((len(squares), 1), math.inf)], dim=1)
        smallest, matched = areas.min(dim=1)
        return matched.masked_fill(smallest.isinf(), len(gt_boxes))
