# SPDX-License-Identifier: Apache-2.0
"""What the tests of multi-scale deformable attention share.

Samples are given flat, level by level; value, locations and weights are the arguments that have
gradients.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from vastdet.layers import MultiScaleDeformableAttention, extension_info
from vastdet.layers.ms_deform_attn_reference import accumulation_dtype

needs_kernel = pytest.mark.skipif(
    extension_info().library is None, reason="the kernels are not built"
)
# For tests that run on a device; some of the suite has tests for every device (conftest.py).
CUDA_MARKS = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(
        not extension_info().cuda_architectures, reason="the CUDA kernel is not built"
    ),
]
# What may differ between two runs, relative to the largest element: CUDA adds in any order.
ORDER = {"cpu": 0.0, "cuda": 1e-5}
LEVELS = [(7, 5), (3, 4), (1, 1)]
POINTS = [4, 0, 3]
DIFFERENTIABLE = (0, 3, 4)


def make(
    batch: int = 2,
    queries: int = 6,
    heads: int = 2,
    channels: int = 32,
    levels: Sequence[tuple[int, int]] = LEVELS,
    points: Sequence[int] = POINTS,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[int]]:
    """Arguments of the operator, the same on all devices; a part of the locations is outside."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(levels)
    areas = shapes.prod(dim=1)
    samples = (batch, queries, heads, sum(points))
    kind = accumulation_dtype(dtype)
    value = torch.randn(batch, int(areas.sum()), heads, channels, generator=generator)
    locations = torch.rand(*samples, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(samples, generator=generator)
    starts = areas.cumsum(0) - areas
    tensors = (value.to(dtype), shapes, starts, locations.to(kind), weights.to(kind))
    return *(x.to(device) for x in tensors), list(points)


def gradients(
    function: Callable[..., Tensor], arguments: Sequence, grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of value, locations and weights."""
    inputs = [
        x.detach().requires_grad_() if i in DIFFERENTIABLE else x for i, x in enumerate(arguments)
    ]
    wanted = [inputs[i] for i in DIFFERENTIABLE]
    return torch.autograd.grad(function(*inputs), wanted, grad_output)


def in_float64(arguments: Sequence) -> tuple:
    """The same numbers in float64, on the CPU, where the expected results are computed."""
    moved = (x.cpu() if isinstance(x, Tensor) else x for x in arguments)
    return tuple(x.double() if i in DIFFERENTIABLE else x for i, x in enumerate(moved))


def assert_near(got: Tensor, expected: Tensor, bound: float) -> None:
    """The difference is at most `bound`, relative to the largest element."""
    assert largest(got.cpu() - expected.cpu()) <= bound * largest(expected)


def largest(difference: Tensor) -> float:
    """The largest magnitude of a tensor, 0 where it has no element."""
    return float(difference.detach().abs().max()) if difference.numel() else 0.0


def module_and_inputs(
    queries: int = 5, device: str = "cpu"
) -> tuple[MultiScaleDeformableAttention, tuple]:
    """A small module whose offsets depend on the query, and its inputs about points."""
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=3, num_points=POINTS)
    torch.nn.init.normal_(module.sampling_offsets.weight)
    torch.nn.init.normal_(module.attention_weights.weight)
    _, shapes, starts, *_ = make()
    query, value = torch.randn(2, queries, 32), torch.randn(2, 48, 32)
    inputs = (query, value, torch.rand(2, queries, 1, 2), shapes, starts)
    return module.to(device), tuple(x.to(device) for x in inputs)
