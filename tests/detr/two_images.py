# SPDX-License-Identifier: Apache-2.0
"""Random maps of two images and random boxes, for tests of transformers and criteria."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from vastdet.detr.structures import Targets


def padded_maps(
    width: int, sizes: Sequence[tuple[int, int]], filled: float = 0.75
) -> tuple[list[Tensor], list[Tensor]]:
    """Levels (2, C, H, W) and masks (2, H, W).

    The second image fills this share of the columns; the rest is padding.
    """
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, width, *size, generator=generator) for size in sizes]
    masks = [torch.zeros(2, *size, dtype=torch.bool) for size in sizes]
    for mask in masks:
        mask[1, :, int(filled * mask.shape[2]) :] = True
    return levels, masks


def random_targets(*counts: int, num_classes: int) -> Targets:
    """Images with that many different boxes, of one class after the other."""
    generator = torch.Generator().manual_seed(2)
    images = []
    for count in counts:
        image = Instances((60, 60))
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * 60
        image.gt_boxes = Boxes(corners.flatten(1))
        image.gt_classes = torch.arange(count) % num_classes
        images.append(image)
    names = [f"image {i}" for i in range(len(counts))]
    return Targets.from_instances(images, names, torch.device("cpu"))
