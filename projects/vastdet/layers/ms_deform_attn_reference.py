# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention in plain PyTorch, for machines without the compiled kernel.

B images, L levels of (height, width) cells, S cells of all levels, Q queries, H heads, D channels
a head, T samples of a (query, head), level by level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# A location that is certainly outside, whatever the size of the level.
_OUTSIDE = -2.0


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of coordinates, weights and sums for values of `dtype`: float64 or float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_levels(sizes: Sequence[Sequence[int]], starts: Sequence[int], num_cells: int) -> None:
    """Raise ValueError unless the levels follow one another and together are the S cells."""
    next_start = 0
    for level, ((height, width), start) in enumerate(zip(sizes, starts, strict=True)):
        if height < 1 or width < 1 or start != next_start or start + height * width > num_cells:
            raise ValueError(
                f"level {level} is {height} x {width} from cell {start}, expected from cell "
                f"{next_start} and within the {num_cells} cells of value: levels follow one "
                "another and together are the value"
            )
        next_start += height * width
    if next_start != num_cells:
        raise ValueError(
            f"the levels of spatial_shapes have {next_start} cells, value has {num_cells}"
        )


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
) -> Tensor:
    """Sample each level bilinearly and add the samples with their weights (Zhu et al. 2021, Eq. 3).

    A location whose cell coordinate, location * size - 0.5, is not within (-1, size) in x and y
    touches no cell: it samples zero and gets no gradient. So does one that is NaN or infinite.

    Args:
        value: (B, S, H, D), float32, float64, bfloat16 or float16.
        spatial_shapes: (L, 2) int64, height and width of each level in cells.
        level_start_index: (L,) int64, the first cell of each level.
        sampling_locations: (B, Q, H, T, 2), x and y as shares of the level's width and height.
        attention_weights: (B, Q, H, T).
        num_points: samples of each level; adds up to T.

    Returns:
        (B, Q, H * D) in the type of `value`; sums are made in `accumulation_dtype`.

    Raises:
        ValueError: the levels do not make up the S cells.
    """
    batch, num_cells, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    dtype = accumulation_dtype(value.dtype)
    sizes, starts = spatial_shapes.tolist(), level_start_index.tolist()
    check_levels(sizes, starts, num_cells)
    with torch.autocast(value.device.type, enabled=False):
        # (B * H, S, D), (B * H, Q, T, 2) and (B * H, Q, T)
        cells = value.to(dtype).transpose(1, 2).flatten(0, 1)
        locations = sampling_locations.to(dtype).transpose(1, 2).flatten(0, 1)
        weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)
        # A zero that depends on all inputs, so that they get gradients without samples too.
        zero = cells[:0].sum() + locations[:0].sum() + weights[:0].sum()
        output = zero.expand(batch * heads, channels, queries)
        first = 0
        for (height, width), start, count in zip(sizes, starts, num_points, strict=True):
            if count and output.numel():
                samples = slice(first, first + count)
                level = cells[:, start : start + height * width]
                level = level.transpose(1, 2).unflatten(2, (height, width))
                sampled = _sample(level, locations[:, :, samples])
                output = output + (sampled * weights[:, None, :, samples]).sum(dim=-1)
            first += count
        output = output.reshape(batch, heads * channels, queries).transpose(1, 2)
        return output.to(value.dtype).contiguous()


def _sample(level: Tensor, locations: Tensor) -> Tensor:
    """Bilinear samples (N, D, Q, P) of maps (N, D, height, width) at locations (N, Q, P, 2)."""
    size = locations.new_tensor([level.shape[-1], level.shape[-2]])
    coordinates = locations.detach() * size - 0.5
    inside = ((coordinates > -1) & (coordinates < size)).all(dim=-1, keepdim=True)
    grid = torch.where(inside, 2 * locations - 1, _OUTSIDE)
    return F.grid_sample(level, grid, padding_mode="zeros", align_corners=False)
