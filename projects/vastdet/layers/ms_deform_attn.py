# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention (Zhu et al. 2021, section 4.1): the operator and the module.

B images, L levels of (height, width) cells, S cells of all levels, Q queries, C channels, H heads,
D = C / H, P points of a level, T samples of a (query, head): the points of all levels.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from vastdet.layers import extension
from vastdet.layers.ms_deform_attn_reference import (
    accumulation_dtype,
    ms_deform_attn_reference,
    ms_deform_attn_reference_backward,
)

# The operators are defined here, so that they exist where the compiled kernels do not.
_ARGUMENTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
    "Tensor sampling_locations, Tensor attention_weights, int[] num_points"
)
_LIBRARY = torch.library.Library("vastdet", "DEF")
_LIBRARY.define(f"ms_deform_attn({_ARGUMENTS}) -> Tensor")
_LIBRARY.define(
    f"ms_deform_attn_backward(Tensor grad_output, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("vastdet::ms_deform_attn", lib=_LIBRARY)
def _fake_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * channels)


@torch.library.register_fake("vastdet::ms_deform_attn_backward", lib=_LIBRARY)
def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (value, sampling_locations, attention_weights)
    grad_value, grad_locations, grad_weights = (x.new_empty(x.shape) for x in inputs)
    return grad_value, grad_locations, grad_weights


def _plain_forward(value: Tensor, *arguments: Tensor | Sequence[int]) -> Tensor:
    extension.warn_of_missing_kernel(value.device.type)
    return ms_deform_attn_reference(value, *arguments)


def _plain_backward(
    grad_output: Tensor, *arguments: Tensor | Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return ms_deform_attn_reference_backward(grad_output, *arguments)


# For every device without a compiled kernel: the operators stay whole in compiled and exported
# graphs, whatever computes them.
_LIBRARY.impl("ms_deform_attn", _plain_forward, "CompositeExplicitAutograd")
_LIBRARY.impl("ms_deform_attn_backward", _plain_backward, "CompositeExplicitAutograd")


def _save_inputs(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    *tensors, num_points = inputs
    ctx.save_for_backward(*tensors)
    ctx.num_points = num_points


def _backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad_value, grad_locations, grad_weights = torch.ops.vastdet.ms_deform_attn_backward(
        grad_output, *ctx.saved_tensors, ctx.num_points
    )
    return grad_value, None, None, grad_locations, grad_weights, None


torch.library.register_autograd(
    "vastdet::ms_deform_attn", _backward, setup_context=_save_inputs, lib=_LIBRARY
)


def _second_backward(ctx: FunctionCtx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    # Without this, torch would warn and go on with zeros.
    raise NotImplementedError(
        "ms_deform_attn has no second derivative; take the first without create_graph=True, or "
        "call vastdet.layers.ms_deform_attn_reference.ms_deform_attn_reference, which has one"
    )


torch.library.register_autograd("vastdet::ms_deform_attn_backward", _second_backward, lib=_LIBRARY)


def _to_autocast(value: Tensor) -> Tensor:
    """The value in the type of autocast where that is on; float64 stays, as torch has it."""
    device = value.device.type
    if value.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return value
    return value.to(torch.get_autocast_dtype(device))


def _autocast_forward(value: Tensor, *arguments: Tensor | Sequence[int]) -> Tensor:
    cast = _to_autocast(value)
    with torch.autocast(value.device.type, enabled=False):
        return torch.ops.vastdet.ms_deform_attn(cast, *arguments)


for _key in ("AutocastCPU", "AutocastCUDA"):
    _LIBRARY.impl("ms_deform_attn", _autocast_forward, _key)

extension.load()


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int] | None = None,
) -> Tensor:
    """Sum of samples of all levels, each bilinear and with a weight (Zhu et al. 2021, Eq. 3).

    Coordinates, weights and sums are float32, or float64 for float64 values, whatever the type of
    `value`. A location whose cell coordinate, location * size - 0.5, is not within (-1, size), or
    is NaN, samples zero and gets no gradient. Runs in plain PyTorch where the compiled kernel is
    missing, and says so once. Under autocast on the CPU and on CUDA, `value` alone takes
    autocast's type.

    Args:
        value: (B, S, H, D), float32, float64, bfloat16 or float16.
        spatial_shapes: (L, 2) int64, height and width of each level in cells.
        level_start_index: (L,) int64, the first cell of each level; levels follow one another.
        sampling_locations: (B, Q, H, L, P, 2), or (B, Q, H, T, 2) with `num_points`: x and y as
            shares of the level's width and height; (0, 0) is its top left corner.
        attention_weights: (B, Q, H, L, P), or (B, Q, H, T) with `num_points`.
        num_points: points of each level where they differ; 0 is allowed.

    Returns:
        (B, Q, H * D) in the type of `value`.

    Raises:
        ValueError: shapes, types or devices do not fit together; on the CPU also where the levels
            do not add up to S (elsewhere that would wait for the device).
    """
    if num_points is None:
        if sampling_locations.dim() != 6 or attention_weights.dim() != 5:
            raise ValueError(
                "without num_points, sampling_locations must be (B, Q, H, L, P, 2) and "
                f"attention_weights (B, Q, H, L, P), got {tuple(sampling_locations.shape)} and "
                f"{tuple(attention_weights.shape)}"
            )
        num_points = [sampling_locations.shape[4]] * sampling_locations.shape[3]
        sampling_locations = sampling_locations.flatten(3, 4)
        attention_weights = attention_weights.flatten(3, 4)
    num_points = list(num_points)
    _check(value, spatial_shapes, level_start_index, num_points)
    _check_samples(value, sampling_locations, attention_weights, num_points)
    dtype = accumulation_dtype(value.dtype)
    samples = (sampling_locations.to(dtype), attention_weights.to(dtype), num_points)
    sizes = _KNOWN_SIZES.get()
    if sizes is not None:
        starts = [sum(height * width for height, width in sizes[:i]) for i in range(len(sizes))]
        return ms_deform_attn_reference(value, sizes, starts, *samples)
    return torch.ops.vastdet.ms_deform_attn(value, spatial_shapes, level_start_index, *samples)


_KNOWN_SIZES: ContextVar[Sequence[Sequence[int]] | None] = ContextVar("known_sizes", default=None)


@contextmanager
def decomposed_ms_deform_attn(sizes: Sequence[Sequence[int]]) -> Iterator[None]:
    """Within it, `ms_deform_attn` is made of PyTorch's operators, `grid_sample` above all.

    For exports to formats that know no operator of ours. What traces a network sees tensors without
    their values, so `sizes`, height and width of each level in cells, must be known beforehand;
    they stand for `spatial_shapes` and `level_start_index`.
    """
    token = _KNOWN_SIZES.set(sizes)
    try:
        yield
    finally:
        _KNOWN_SIZES.reset(token)


def _check(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, num_points: list[int]
) -> None:
    """Raise ValueError unless value and levels have the shapes and types of `ms_deform_attn`."""
    types = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    if value.dim() != 4 or value.dtype not in types:
        raise ValueError(
            "value must be (B, S, H, D) in float32, float64, bfloat16 or float16, "
            f"got {tuple(value.shape)} in {value.dtype}"
        )
    levels = len(num_points)
    if spatial_shapes.shape != (levels, 2) or level_start_index.shape != (levels,):
        raise ValueError(
            f"for {levels} levels, spatial_shapes must be ({levels}, 2) and level_start_index "
            f"({levels},), got {tuple(spatial_shapes.shape)} and {tuple(level_start_index.shape)}"
        )
    if spatial_shapes.dtype != torch.int64 or level_start_index.dtype != torch.int64:
        raise ValueError(
            "spatial_shapes and level_start_index must be int64, "
            f"got {spatial_shapes.dtype} and {level_start_index.dtype}"
        )
    if min(num_points, default=0) < 0:
        raise ValueError(f"num_points must be 0 or more for each level, got {num_points}")


def _check_samples(
    value: Tensor, sampling_locations: Tensor, attention_weights: Tensor, num_points: list[int]
) -> None:
    """Raise ValueError unless the samples have the shape and device that `value` asks for."""
    batch, _, heads, _ = value.shape
    queries = sampling_locations.shape[1] if sampling_locations.dim() == 5 else 0
    expected = (batch, queries, heads, sum(num_points))
    if sampling_locations.shape != (*expected, 2) or attention_weights.shape != expected:
        raise ValueError(
            f"for value {tuple(value.shape)} and num_points {num_points}, sampling_locations must "
            f"be ({batch}, Q, {heads}, {sum(num_points)}, 2) and attention_weights ({batch}, Q, "
            f"{heads}, {sum(num_points)}), got {tuple(sampling_locations.shape)} and "
            f"{tuple(attention_weights.shape)}"
        )
    devices = {value.device, sampling_locations.device, attention_weights.device}
    if len(devices) > 1:
        raise ValueError(
            "value, sampling_locations and attention_weights must be on one device, "
            f"got {', '.join(sorted(map(str, devices)))}"
        )


class MultiScaleDeformableAttention(nn.Module):
    """Each query samples a few points about its reference, on all levels (section 4.1, Eq. 3).

    The parameters have the names of the authors' code: `sampling_offsets`, `attention_weights`,
    `value_proj`, `output_proj`.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        *,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int | Sequence[int] = 4,
        box_scale: float = 0.5,
    ) -> None:
        """`num_points` is the number of points a head samples on each level, or one for each.

        About a box, an offset of as many units as there are points is `box_scale` of its sides.
        """
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}"
            )
        counts = [num_points] * num_levels if isinstance(num_points, int) else list(num_points)
        if len(counts) != num_levels or min(counts, default=0) < 0 or sum(counts) == 0:
            raise ValueError(
                f"num_points must be one positive number, or {num_levels} numbers from 0 of which "
                f"one is positive (one a level), got {num_points}"
            )
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = tuple(counts)
        num_samples = num_heads * sum(counts)
        self.sampling_offsets = nn.Linear(embed_dim, num_samples * 2)
        self.attention_weights = nn.Linear(embed_dim, num_samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        # The level of each sample, and the scale that a box gives its offsets.
        level = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)])
        scale = torch.tensor([box_scale / count for count in counts for _ in range(count)])
        self.register_buffer("_level_of_sample", level, persistent=False)
        self.register_buffer("_box_scale", scale[:, None], persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head h looks along the angle 2 pi h / H, its points one unit apart; weights are equal."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.cat([torch.arange(count) + 1.0 for count in self.num_points])
        with torch.no_grad():
            nn.init.zeros_(self.sampling_offsets.weight)
            self.sampling_offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())
            nn.init.zeros_(self.attention_weights.weight)
            nn.init.zeros_(self.attention_weights.bias)
            for projection in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C).
            value: (B, S, C), the cells of all levels.
            reference_points: (B, Q, L or 1, 2 or 4), points (x, y) or boxes (cx, cy, w, h) as
                shares of each level's width and height.
            spatial_shapes: (L, 2) int64, height and width of each level in cells.
            level_start_index: (L,) int64, the first cell of each level.
            padding_mask: (B, S) bool, True at padding, whose values count as zero.

        Returns:
            (B, Q, C).
        """
        return self.output_proj(
            ms_deform_attn(
                self.project_value(value, padding_mask),
                spatial_shapes,
                level_start_index,
                self.locate(query, reference_points, spatial_shapes),
                self.weigh(query),
                self.num_points,
            )
        )

    def project_value(self, value: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, S, H, D) from (B, S, C); zero where the mask (B, S) is True."""
        projected = self.value_proj(value)
        if padding_mask is not None:
            # In place: nothing else holds the projection, and its backward does not read it.
            projected = projected.masked_fill_(padding_mask[..., None], 0)
        return projected.unflatten(-1, (self.num_heads, -1))

    def weigh(self, query: Tensor) -> Tensor:
        """Weights (B, Q, H, T) of queries (B, Q, C); those of one head add up to 1."""
        logits = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
        return F.softmax(logits, dim=-1, dtype=accumulation_dtype(logits.dtype))

    def locate(self, query: Tensor, reference_points: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Locations (B, Q, H, T, 2) of queries (B, Q, C), in float32 whatever autocast says.

        About points the offsets are in cells, about boxes in shares of `box_scale` times the box's
        size, divided by the number of points.
        """
        size = reference_points.shape[-1]
        if size not in (2, 4) or reference_points.shape[2] not in (1, self.num_levels):
            raise ValueError(
                f"reference_points must be (B, Q, {self.num_levels} or 1, 2 or 4), "
                f"got {tuple(reference_points.shape)}"
            )
        offsets = self.sampling_offsets(query).unflatten(-1, (self.num_heads, -1, 2))
        dtype = accumulation_dtype(offsets.dtype)
        references = reference_points.to(dtype)
        if references.shape[2] > 1:
            references = references[:, :, self._level_of_sample]
        references = references[:, :, None]
        if size == 2:
            cells = spatial_shapes.flip(-1)[self._level_of_sample]
            scale = cells.to(dtype).reciprocal()
        else:
            scale = references[..., 2:] * self._box_scale
        return torch.addcmul(references[..., :2], offsets.to(dtype), scale)
