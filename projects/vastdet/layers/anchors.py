# SPDX-License-Identifier: Apache-2.0
"""Anchors as torchvision lays them, so that its published weights mean the same here.

Letters: L levels, A anchors a location; grid sizes are (rows, columns).
"""

import torch
from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    DefaultAnchorGenerator,
)
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors with half sides rounded to pixels, and strides that fit the image.

    The two differences of `torchvision.models.detection.anchor_utils.AnchorGenerator` (0.29):
    corners relative to the centre are rounded (half to even), and a level's stride is the padded
    image's side divided by the level's grid, rounded down. That is 61 rather than 64 pixels at P6
    of an image 800 pixels high. Anchors stay size-major within a location, as in Detectron2.
    """

    def generate_cell_anchors(
        self,
        sizes: tuple[float, ...] = (32, 64, 128, 256, 512),
        aspect_ratios: tuple[float, ...] = (0.5, 1, 2),
    ) -> Tensor:
        """Anchors [A, 4] about (0, 0), XYXY in pixels, rounded; ratios are height / width."""
        return super().generate_cell_anchors(sizes, aspect_ratios).round()

    def _grid_anchors(self, grid_sizes: list[list[int]]) -> list[Tensor]:
        # The finest level's stride divides the padded image, so it gives the image's size back.
        image_height, image_width = (cells * self.strides[0] for cells in grid_sizes[0])
        anchors = []
        for (rows, columns), cell_anchors in zip(grid_sizes, self.cell_anchors, strict=True):
            stride_y, stride_x = image_height // rows, image_width // columns
            steps_y = torch.arange(rows, device=cell_anchors.device) + self.offset
            steps_x = torch.arange(columns, device=cell_anchors.device) + self.offset
            y, x = torch.meshgrid(steps_y * stride_y, steps_x * stride_x, indexing="ij")
            centers = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            anchors.append((centers + cell_anchors).reshape(-1, 4))
        return anchors
