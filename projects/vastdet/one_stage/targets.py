# SPDX-License-Identifier: Apache-2.0
"""Targets of the locations of a pyramid; which box a location answers for is the detector's.

B images, R locations of all levels, M ground-truth boxes of an image, K classes.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.structures import Boxes, Instances
from torch import Tensor

# Distances from the centre of a square to the sides of a box, in sides of the square.
SIDE_DISTANCES = Box2BoxTransformLinear(normalize_by_size=True)


class LocationTargets(NamedTuple):
    """Targets of all locations of a batch."""

    gt_classes: Tensor  # (B, R) in [0, K], K for background
    # (B, R, 4) left, top, right, bottom in sides of the anchor; meaningless on background
    gt_distances: Tensor


class LocationAssigner(ABC):
    """Gives each location a box of its image, or background."""

    def __init__(self, num_classes: int) -> None:
        """`num_classes` is K, also the background label."""
        self.num_classes = num_classes

    @torch.no_grad()
    def assign(self, anchors: list[Boxes], gt_instances: list[Instances]) -> LocationTargets:
        """Assign a batch.

        Args:
            anchors: per level, squares about the locations, XYXY input pixels.
            gt_instances: per image, `gt_boxes` (XYXY input pixels) and `gt_classes`.
        """
        all_anchors = torch.cat([a.tensor for a in anchors])
        classes, distances = [], []
        for instances in gt_instances:
            # The last row stands for background.
            gt_boxes = torch.cat([instances.gt_boxes.tensor, all_anchors.new_zeros(1, 4)])
            gt_classes = instances.gt_classes.new_full((len(instances) + 1,), self.num_classes)
            gt_classes[:-1] = instances.gt_classes
            matched = self.match(anchors, instances)
            classes.append(gt_classes[matched])
            distances.append(SIDE_DISTANCES.get_deltas(all_anchors, gt_boxes[matched]))
        return LocationTargets(torch.stack(classes), torch.stack(distances))

    @abstractmethod
    def match(self, anchors: list[Boxes], instances: Instances) -> Tensor:
        """The box of each location of one image, (R,) in [0, M], M for background."""
