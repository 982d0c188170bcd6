# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention in plain PyTorch, for machines without the compiled kernel.

B images, L levels of (height, width) cells, S cells of all levels, Q queries, H heads, D channels
a head, T samples of a (query, head), level by level.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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


class _Level(NamedTuple):
    """What belongs to one level; N is B * H."""

    cells: slice  # of S
    samples: slice  # of T
    maps: Tensor  # (N, D, height, width)
    grid: Tensor  # (N, Q, P, 2), as grid_sample counts places
    inside: Tensor  # (N, Q, P, 1)


def _levels(
    cells: Tensor,
    locations: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    num_points: Sequence[int],
) -> Iterator[_Level]:
    """The levels that have samples, of cells (N, S, D) and locations (N, Q, T, 2)."""
    sizes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    starts = (
        level_start_index.tolist() if isinstance(level_start_index, Tensor) else level_start_index
    )
    check_levels(sizes, starts, cells.shape[1])
    first = 0
    for (height, width), start, count in zip(sizes, starts, num_points, strict=True):
        of_level = slice(start, start + height * width)
        samples = slice(first, first + count)
        first += count
        # Neither grid_sample nor its backward takes empty tensors.
        if count and cells.numel() and locations.numel():
            maps = cells[:, of_level].transpose(1, 2).unflatten(2, (height, width))
            yield _Level(of_level, samples, maps, *_grid(locations[:, :, samples], height, width))


def _grid(locations: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Locations (N, Q, P, 2) as grid_sample counts them, and which are inside: (N, Q, P, 1)."""
    size = locations.new_tensor([width, height])
    coordinates = locations.detach() * size - 0.5
    inside = ((coordinates > -1) & (coordinates < size)).all(dim=-1, keepdim=True)
    return torch.where(inside, 2 * locations - 1, _OUTSIDE), inside


def _heads_first(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """(B * H, X, ...) in `dtype` from (B, X, H, ...)."""
    return tensor.to(dtype).transpose(1, 2).flatten(0, 1)


def _heads_last(tensor: Tensor, like: Tensor) -> Tensor:
    """(B, X, H, ...) from (B * H, X, ...), contiguous, in the type of `like`."""
    batch, _, heads = like.shape[:3]
    return tensor.to(like.dtype).unflatten(0, (batch, heads)).transpose(1, 2).contiguous()


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
) -> Tensor:
    """Sample each level bilinearly and add the samples with their weights (Zhu et al. 2021, Eq. 3).

    A location whose cell coordinate, location * size - 0.5, is not within (-1, size) in x and y
    touches no cell: it samples zero and gets no gradient. So does one that is NaN or infinite.

    Args:
        value: (B, S, H, D), float32, float64, bfloat16 or float16.
        spatial_shapes: (L, 2) int64, height and width of each level in cells; or as numbers.
        level_start_index: (L,) int64, the first cell of each level; or as numbers.
        sampling_locations: (B, Q, H, T, 2), x and y as shares of the level's width and height.
        attention_weights: (B, Q, H, T).
        num_points: samples of each level; adds up to T.

    Returns:
        (B, Q, H * D) in the type of `value`; sums are made in `accumulation_dtype`.

    Raises:
        ValueError: the levels do not make up the S cells.
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    dtype = accumulation_dtype(value.dtype)
    with torch.autocast(value.device.type, enabled=False):
        inputs = (value, sampling_locations, attention_weights)
        cells, locations, weights = (_heads_first(x, dtype) for x in inputs)
        # A zero that depends on all inputs, so that they get gradients without samples too.
        zero = cells[:0].sum() + locations[:0].sum() + weights[:0].sum()
        output = zero.expand(batch * heads, channels, queries)
        for level in _levels(cells, locations, spatial_shapes, level_start_index, num_points):
            sampled = _sample(level)
            output = output + (sampled * weights[:, None, :, level.samples]).sum(dim=-1)
        output = output.reshape(batch, heads * channels, queries).transpose(1, 2)
        return output.to(value.dtype).contiguous()


def ms_deform_attn_reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `ms_deform_attn_reference`, written out: it works where autograd is off.

    Args:
        grad_output: (B, Q, H * D), the gradient of the output.
        value: (B, S, H, D), as in the forward pass; so are the others.
        spatial_shapes: (L, 2).
        level_start_index: (L,).
        sampling_locations: (B, Q, H, T, 2).
        attention_weights: (B, Q, H, T).
        num_points: samples of each level.

    Returns:
        Gradients of `value`, `sampling_locations` and `attention_weights`, in their types.

    Raises:
        ValueError: the levels do not make up the S cells.
    """
    dtype = accumulation_dtype(value.dtype)
    with torch.autocast(value.device.type, enabled=False):
        inputs = (value, sampling_locations, attention_weights)
        cells, locations, weights = (_heads_first(x, dtype) for x in inputs)
        # (N, D, Q, 1)
        grad = _heads_first(grad_output.unflatten(-1, value.shape[2:]), dtype)
        grad = grad.transpose(1, 2)[..., None]
        grads = grad_cells, grad_locations, grad_weights = [
            x.new_zeros(x.shape) for x in (cells, locations, weights)
        ]
        for level in _levels(cells, locations, spatial_shapes, level_start_index, num_points):
            grad_weights[:, :, level.samples] = (_sample(level) * grad).sum(dim=1)
            # The codes of bilinear sampling, of zeros outside, and of corners that are not aligned.
            grad_maps, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
                grad * weights[:, None, :, level.samples],
                *(level.maps, level.grid, 0, 0, False, (True, True)),
            )
            grad_cells[:, level.cells] = grad_maps.flatten(2).transpose(1, 2)
            grad_locations[:, :, level.samples] = torch.where(level.inside, 2 * grad_grid, 0)
        grad_value, grad_locations, grad_weights = (
            _heads_last(g, x) for g, x in zip(grads, inputs, strict=True)
        )
        return grad_value, grad_locations, grad_weights


def _sample(level: _Level) -> Tensor:
    """Bilinear samples (N, D, Q, P)."""
    return F.grid_sample(level.maps, level.grid, padding_mode="zeros", align_corners=False)
