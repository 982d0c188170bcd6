# SPDX-License-Identifier: Apache-2.0
"""What the first stage should say at each location: heatmap, peaks, distances (section 4).

Rules and constants are those of the authors' centernet/modeling/dense_heads/centernet.py.

B images, R locations of all levels, N ground-truth boxes of an image, P peaks of the batch.
"""

import math
from typing import NamedTuple

import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.structures import Boxes, Instances
from torch import Tensor

# Heatmaps are 0 below this.
MIN_HEAT = 1e-4


class CenterTargets(NamedTuple):
    """Targets of all locations of a batch."""

    heatmaps: Tensor  # (B, R) in [0, 1], 1 in the cell of a centre
    # Image and location of each peak, (P,) and (P,): one for each box and level that it belongs to.
    peaks: tuple[Tensor, Tensor]
    regressed: Tensor  # (B, R) bool: locations with distances
    gt_distances: Tensor  # (B, R, 4) left, top, right, bottom in strides; meaningless elsewhere


class CenterTargetAssigner:
    """Draws boxes as peaks of a heatmap, and gives the cells about their centres distances."""

    def __init__(
        self,
        *,
        sizes_of_interest: list[list[float]],
        min_overlap: float = 0.8,
        min_radius: float = 4.0,
    ) -> None:
        """Set the rule.

        Args:
            sizes_of_interest: for each level the smallest and the largest half diagonal, in pixels,
                of its boxes; both belong to the range, and ranges may overlap.
            min_overlap: IoU along one side, in (0, 1), of a box and itself shifted by the radius.
            min_radius: of a peak, in pixels.
        """
        self.sizes_of_interest = sizes_of_interest
        # Two intervals of length 1 that are s apart have IoU (1 - s) / (1 + s).
        self.radius_share = (1 - min_overlap) / (1 + min_overlap)
        self.min_radius = min_radius
        self.transform = Box2BoxTransformLinear(normalize_by_size=True)

    @torch.no_grad()
    def assign(self, anchors: list[Boxes], gt_instances: list[Instances]) -> CenterTargets:
        """Assign a batch.

        Args:
            anchors: per level, squares of one stride about the locations, XYXY input pixels.
            gt_instances: per image, `gt_boxes` (XYXY input pixels).
        """
        assert len(anchors) == len(self.sizes_of_interest), "one size range a level"
        cells = torch.cat([level.tensor for level in anchors])
        ranges = torch.cat(
            [
                level.tensor.new_tensor(bounds).expand(len(level), 2)
                for level, bounds in zip(anchors, self.sizes_of_interest, strict=True)
            ]
        )
        heatmaps, peaks, regressed, distances = [], [], [], []
        for image, instances in enumerate(gt_instances):
            gt_boxes = instances.gt_boxes.tensor
            in_level = _half_diagonals(gt_boxes)
            in_level = (in_level >= ranges[:, :1]) & (in_level <= ranges[:, 1:])
            cells_off = _cells_off(cells, instances.gt_boxes)
            fading = self._fading(cells, instances.gt_boxes, cells_off == 0)
            heatmaps.append(_heatmap(fading))
            location = ((cells_off == 0) & in_level).nonzero()[:, 0]
            peaks.append((torch.full_like(location, image), location))
            suits = in_level & (cells_off <= 1) & _inside(cells, gt_boxes)
            closest, matched = _with_none(fading.masked_fill(~suits, math.inf)).min(dim=1)
            regressed.append(closest.isfinite())
            # The last row stands for no box.
            targets = torch.cat([gt_boxes, gt_boxes.new_zeros(1, 4)])[matched]
            distances.append(self.transform.get_deltas(cells, targets))
        return CenterTargets(
            torch.stack(heatmaps),
            (torch.cat([p[0] for p in peaks]), torch.cat([p[1] for p in peaks])),
            torch.stack(regressed),
            torch.stack(distances),
        )

    def _fading(self, cells: Tensor, gt_boxes: Boxes, in_center_cell: Tensor) -> Tensor:
        """Squared distance to each centre over the squared radius, (R, N); 0 in its own cell."""
        gaps = (_centers(cells)[:, None] - gt_boxes.get_centers()[None]).square().sum(dim=2)
        radii = 2 * self.radius_share**2 * gt_boxes.area()
        return gaps.masked_fill(in_center_cell, 0) / radii.clamp(min=self.min_radius**2)


def _heatmap(fading: Tensor) -> Tensor:
    """(R, N) -> (R,): the strongest peak at each location, as a Gaussian."""
    heat = (-_with_none(fading).amin(dim=1)).exp()
    return heat.masked_fill(heat < MIN_HEAT, 0)


def _with_none(costs: Tensor) -> Tensor:
    """(R, N) -> (R, N + 1): a box at infinite cost lets minima work on an image without boxes."""
    return torch.cat([costs, costs.new_full((len(costs), 1), math.inf)], dim=1)


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _half_diagonals(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).square().sum(dim=1).sqrt() / 2


def _cells_off(cells: Tensor, gt_boxes: Boxes) -> Tensor:
    """Rows or columns, whichever are more, between each cell and that of each centre, (R, N)."""
    strides = cells[:, None, 2:] - cells[:, None, :2]
    columns_rows = (gt_boxes.get_centers()[None] / strides).floor()
    return (columns_rows - (cells[:, None, :2] / strides).round()).abs().amax(dim=2)


def _inside(cells: Tensor, boxes: Tensor) -> Tensor:
    """Whether the middle of each cell lies strictly inside each box, (R, N)."""
    middles = _centers(cells)[:, None]
    return ((middles > boxes[None, :, :2]) & (middles < boxes[None, :, 2:])).all(dim=2)
