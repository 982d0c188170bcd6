# SPDX-License-Identifier: Apache-2.0
"""Feature maps of several levels as one sequence of tokens.

B images, L levels of H x W cells, S = sum of H * W tokens, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Tokens:
    """The cells of all levels, level by level, row by row.

    Attributes:
        values: (B, S, C) features.
        positions: (B, S, C) encoding of where a cell is, its level included.
        padding_mask: (B, S) bool, True at padding.
        sizes: (H, W) of each level, as Python numbers.
        spatial_shapes: (L, 2) int64, the same on the device.
        level_start_index: (L,) int64, the first token of each level.
        valid_ratios: (B, L, 2), the share of a level's width and height that is not padding.
    """

    values: Tensor
    positions: Tensor
    padding_mask: Tensor
    sizes: tuple[tuple[int, int], ...]
    spatial_shapes: Tensor
    level_start_index: Tensor
    valid_ratios: Tensor

    def with_values(self, values: Tensor) -> "Tokens":
        """The same cells with other features."""
        return replace(self, values=values)

    def cell_centers(self) -> list[Tensor]:
        """For each level (B, H * W, 2): x and y of the cells, as shares of the image."""
        # Whole numbers of valid cells, as in the code of Deformable DETR's authors: a rounded one
        # moves centres over the bounds of valid proposals.
        return [
            grid / (ratio[:, None] * grid.new_tensor([width, height])).round()
            for (height, width), ratio, grid in zip(
                self.sizes, self.valid_ratios.unbind(1), self._grids(), strict=True
            )
        ]

    def cell_references(self) -> Tensor:
        """(B, S, L, 2): each cell's centre as a share of each level, padding included."""
        centers = torch.cat(self.cell_centers(), dim=1)
        return centers[:, :, None] * self.valid_ratios[:, None]

    def level_references(self, boxes: Tensor) -> Tensor:
        """(B, Q, L, 2 or 4): points or boxes (shares of the image) as shares of each level."""
        ratios = self.valid_ratios.repeat(1, 1, boxes.shape[-1] // 2)
        return boxes[:, :, None] * ratios[:, None]

    def _grids(self) -> list[Tensor]:
        """For each level (1, H * W, 2): x and y of the cells' centres, in cells."""
        device = self.values.device
        grids = []
        for height, width in self.sizes:
            y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
            x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
            grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
            grids.append(grid.flatten(0, 1)[None])
        return grids


def flatten_maps(
    maps: Sequence[Tensor], padding_masks: Sequence[Tensor], positions: Sequence[Tensor]
) -> Tokens:
    """Join the maps of all levels into tokens.

    Args:
        maps: (B, C, H, W) of each level.
        padding_masks: (B, H, W) bool of each level, True at padding.
        positions: (B, H, W, C) of each level.
    """
    sizes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
    device = maps[0].device
    areas = [height * width for height, width in sizes]
    starts = [sum(areas[:i]) for i in range(len(areas))]
    return Tokens(
        values=torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1),
        positions=torch.cat([p.flatten(1, 2) for p in positions], dim=1),
        padding_mask=torch.cat([m.flatten(1) for m in padding_masks], dim=1),
        sizes=sizes,
        spatial_shapes=torch.tensor(sizes, device=device),
        level_start_index=torch.tensor(starts, device=device),
        valid_ratios=torch.stack([valid_ratio(m) for m in padding_masks], dim=1),
    )


def valid_ratio(padding_mask: Tensor) -> Tensor:
    """(B, 2): the share of the columns and of the rows of masks (B, H, W) that is not padding."""
    valid = (~padding_mask).float()
    _, height, width = padding_mask.shape
    # Not the mean, which on a GPU is a product with 1 / W and can differ from 1 without padding.
    shares = (valid[:, 0, :].sum(dim=1) / width, valid[:, :, 0].sum(dim=1) / height)
    return torch.stack(shares, dim=-1)


def pad_to_batch(images: Sequence[Tensor], divisibility: int) -> Tensor:
    """(B, C, H, W): images (C, H_i, W_i) with zeros at the right and the bottom.

    H and W are multiples of `divisibility`, where that is not 0. Unlike Detectron2's `ImageList`,
    it computes with sizes as numbers, which a compiler can follow.
    """
    step = max(1, divisibility)
    height, width = (-(-max(x.shape[i] for x in images) // step) * step for i in (-2, -1))
    return torch.stack(
        [F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images]
    )


def padding_mask_of(sizes: Sequence[tuple[int, int]], padded: tuple[int, int]) -> Tensor:
    """(B, H, W) bool, True at padding, of images of `sizes` (height, width) in a padded batch."""
    mask = torch.ones(len(sizes), *padded, dtype=torch.bool)
    for image, (height, width) in zip(mask, sizes, strict=True):
        image[:height, :width] = False
    return mask


def resize_mask(padding_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (B, H, W) for a map of another size, by the nearest cell, rounded down."""
    return F.interpolate(padding_mask[:, None].float(), size=size)[:, 0].bool()
