# SPDX-License-Identifier: Apache-2.0
"""The operator against loops, grid_sample and itself, in every build that this machine can run."""

import logging
import math
from collections.abc import Iterator

import pytest
import torch
from tests.layers.ms_deform_attn_inputs import (
    DIFFERENTIABLE,
    LEVELS,
    assert_near,
    gradients,
    in_float64,
    make,
    needs_kernel,
)
from torch import Tensor
from torch.nn import functional as F

from vastdet.layers import ms_deform_attn
from vastdet.layers.ms_deform_attn import decomposed_ms_deform_attn
from vastdet.layers.ms_deform_attn_reference import ms_deform_attn_reference


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def loops(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    points: list[int],
) -> Tensor:
    """Equation 3, one cell at a time."""
    batch, queries, heads, _ = weights.shape
    output = torch.zeros(batch, queries, heads, value.shape[-1], dtype=torch.float64)
    level_of_sample = [level for level, count in enumerate(points) for _ in range(count)]
    for b, q, h, t in torch.ones_like(weights).nonzero().tolist():
        height, width = shapes[level_of_sample[t]].tolist()
        start = int(starts[level_of_sample[t]])
        x, y = (locations[b, q, h, t].double() * torch.tensor([width, height]) - 0.5).tolist()
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        for row in range(height):
            for column in range(width):
                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                if share:
                    cell = value[b, start + row * width + column, h].double()
                    output[b, q, h] += weights[b, q, h, t].double() * share * cell
    return output.flatten(2)


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize("channels", [1, 5, 16, 32, 64, 120])
def test_is_equation_3(variant: str, function, channels: int) -> None:
    output = function(*make(channels=channels, device=variant))
    # The largest difference was 1e-6.
    expected = loops(*make(channels=channels))
    torch.testing.assert_close(output.cpu().double(), expected, atol=1e-5, rtol=0)


# Relative to the largest element. Few queries read the value in place, many copy the heads first.
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 2e-5),
        (torch.bfloat16, 2**-8),
        (torch.float16, 2**-11),
    ],
)
@pytest.mark.parametrize("queries", [1, 60])
def test_error_against_float64(
    variant: str, dtype: torch.dtype, bound: float, queries: int
) -> None:
    levels = [(17, 23), (9, 11), (2, 2)]
    assert_near_float64(make(queries=queries, levels=levels, dtype=dtype, device=variant), bound)


def assert_near_float64(arguments: tuple, bound: float) -> None:
    """Output and gradients beside the reference in float64, relative to the largest element."""
    exact = in_float64(arguments)
    output = ms_deform_attn(*arguments)
    assert output.dtype == arguments[0].dtype
    grad_output = torch.randn(output.shape).to(output)
    pairs = [
        (output, ms_deform_attn_reference(*exact)),
        *zip(
            gradients(ms_deform_attn, arguments, grad_output),
            gradients(ms_deform_attn_reference, exact, grad_output.cpu().double()),
            strict=True,
        ),
    ]
    for got, expected in pairs:
        assert_near(got, expected, bound)


def test_gradients_are_derivatives(variant: str) -> None:
    value, shapes, starts, locations, weights, points = make(
        1, 2, channels=3, dtype=torch.float64, device=variant
    )
    # Away from the borders of cells, where the derivative jumps.
    size = shapes.flip(-1)[[i for i, count in enumerate(points) for _ in range(count)]].double()
    cells = locations * size - 0.5
    locations = (cells.floor() + 0.1 + 0.8 * (cells - cells.floor()) + 0.5) / size
    inputs = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, loc, w: ms_deform_attn(v, shapes, starts, loc, w, points),
        inputs,
        nondet_tol=1e-12,  # CUDA adds in any order
    )


def sampled_by_grid(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The usual formulation for equal numbers of points: (B, Q, H, L, P, 2)."""
    batch, _, heads, channels = value.shape
    levels = value.split([h * w for h, w in shapes.tolist()], dim=1)
    samples = []
    for level, (cells, (h, w)) in enumerate(zip(levels, shapes.tolist(), strict=True)):
        maps = cells.permute(0, 2, 3, 1).reshape(batch * heads, channels, h, w)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(maps, grid, align_corners=False))
    stacked = torch.stack(samples, dim=-2).unflatten(0, (batch, heads))
    return torch.einsum("bhcqlp,bqhlp->bqhc", stacked, weights).flatten(2)


@pytest.mark.slow
@pytest.mark.parametrize("num_levels", [4, 5])
def test_real_shapes(num_levels: int) -> None:
    levels = [(100, 134), (50, 67), (25, 34), (13, 17), (7, 9)][:num_levels]
    value, shapes, starts, locations, weights, _ = make(2, 13_400, 8, 32, levels, [4] * num_levels)
    locations = locations.unflatten(3, (num_levels, 4))
    weights = (
        weights.unflatten(3, (num_levels, 4))
        .flatten(3)
        .softmax(-1)
        .view_as(weights.unflatten(3, (num_levels, 4)))
    )
    output = ms_deform_attn(value, shapes, starts, locations, weights)
    expected = sampled_by_grid(value, shapes, locations, weights)
    # The largest difference was 2e-6.
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


# Many cells are read in place, few are copied first; with the third, the first level of one image
# alone is read in place by two threads, and that of three is copied.
@needs_kernel
@pytest.mark.parametrize(
    ("levels", "heads"),
    [
        ([(90, 90), (9, 11), (1, 1)], 2),
        ([(7, 5), (3, 4), (1, 1)], 2),
        ([(16, 16), (3, 4), (1, 1)], 1),
    ],
)
def test_threads_and_other_images_change_no_bit(
    cpu_variant: None, levels: list[tuple[int, int]], heads: int, threads: None
) -> None:
    value, shapes, starts, locations, weights, points = make(3, 70, heads, levels=levels)
    torch.set_num_threads(1)
    output = ms_deform_attn(value, shapes, starts, locations, weights, points)
    torch.set_num_threads(2)
    assert torch.equal(output, ms_deform_attn(value, shapes, starts, locations, weights, points))
    for b in range(3):
        one = slice(b, b + 1)
        alone = ms_deform_attn(value[one], shapes, starts, locations[one], weights[one], points)
        assert torch.equal(output[one], alone)


# Rows that are no whole vector, read where the tensor ends.
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 7, 16, 36, 64])
@pytest.mark.parametrize("queries", [1, 40])
def test_any_number_of_channels(
    variant: str, dtype: torch.dtype, channels: int, queries: int
) -> None:
    bound = {torch.float64: 1e-12, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    levels = [(9, 8), (2, 3), (1, 1)]
    arguments = make(2, queries, 3, channels, levels, dtype=dtype, device=variant)
    assert_near_float64(arguments, bound)


@needs_kernel
def test_backward_is_deterministic(threads: None) -> None:
    arguments = make(queries=300, heads=3)
    grad_output = torch.randn(2, 300, 96)
    torch.set_num_threads(1)
    first = gradients(ms_deform_attn, arguments, grad_output)
    torch.set_num_threads(2)
    for _ in range(2):
        again = gradients(ms_deform_attn, arguments, grad_output)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize(("batch", "queries"), [(0, 6), (2, 0), (1, 1)])
def test_empty_and_single(variant: str, function, batch: int, queries: int) -> None:
    arguments = make(batch, queries, device=variant)
    output = function(*arguments)
    assert output.shape == (batch, queries, 64)
    for grad, i in zip(gradients(function, arguments, output), DIFFERENTIABLE, strict=True):
        assert grad.shape == arguments[i].shape
        assert grad.isfinite().all()
    if queries == 0:
        assert not gradients(function, arguments, output)[0].any()


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize("place", [math.nan, math.inf, -math.inf, 1e30, -3.0, 7.5])
def test_outside_samples_zero_and_gets_no_gradient(variant: str, function, place: float) -> None:
    arguments = make(device=variant)
    arguments[3][:, :, :, ::2, 1] = place
    clean = list(in_float64(arguments))
    clean[3] = torch.where(clean[3].isfinite(), clean[3], -3.0)
    output = function(*arguments)
    torch.testing.assert_close(output.cpu().double(), loops(*clean), atol=2e-5, rtol=0)
    grads = gradients(function, arguments, torch.ones_like(output))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][:, :, :, ::2].any()
    assert not grads[2][:, :, :, ::2].any()


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize("queries", [1, 40])
def test_cells_that_nobody_samples_may_be_nan(variant: str, function, queries: int) -> None:
    arguments = make(1, queries, levels=[(20, 20), (6, 6)], points=[3, 2], device=variant)
    value, locations = arguments[0], arguments[3]
    locations.mul_(0.2).sub_(0.1)  # the top left corner, partly outside
    grad_output = torch.ones(1, queries, 64, device=variant)
    used = gradients(function, arguments, grad_output)[0] != 0
    value[~used.any(dim=-1)] = math.nan
    output = function(*arguments)
    assert output.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(function, arguments, grad_output))


def test_strides_do_not_matter(variant: str) -> None:
    value, shapes, starts, locations, weights, points = make(channels=16, device=variant)
    expected = ms_deform_attn(value, shapes, starts, locations, weights, points)
    grad_output = torch.randn_like(expected)
    wanted = gradients(
        ms_deform_attn, (value, shapes, starts, locations, weights, points), grad_output
    )
    for order in ((0, 2, 1, 3), (3, 1, 2, 0)):
        inverse = [order.index(i) for i in range(4)]
        strided = value.permute(order).contiguous().permute(inverse)
        moved = locations.flip(-1).flip(-1).transpose(1, 3).contiguous().transpose(1, 3)
        arguments = (strided, shapes, starts, moved, weights, points)
        torch.testing.assert_close(ms_deform_attn(*arguments), expected)
        sliced = torch.stack([grad_output, grad_output], dim=-1)[..., 0]
        for got, grad in zip(gradients(ms_deform_attn, arguments, sliced), wanted, strict=True):
            torch.testing.assert_close(got, grad)


def test_without_kernels_warns_once_and_computes_the_same(
    plain_pytorch: None, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = make()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(ms_deform_attn(*arguments), ms_deform_attn_reference(*arguments))
    assert [r.message for r in caplog.records if "plain PyTorch" in r.message] == [
        "multi-scale deformable attention runs in plain PyTorch, which is slow: not built"
    ]


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.zeros(2, 48, 64), r"value must be \(B, S, H, D\)"),
        (0, torch.zeros(2, 48, 2, 32, dtype=torch.int64), "float32, float64, bfloat16"),
        (1, torch.ones(2, 2, dtype=torch.int64), "for 3 levels, spatial_shapes must be"),
        (1, torch.ones(3, 2), "must be int64"),
        (1, torch.tensor([[7, 5], [3, 4], [2, 1]]), "levels"),
        (1, torch.tensor([[7, 5], [3, 3], [1, 1]]), "levels"),
        (2, torch.tensor([0, 36, 47]), "level 1 is 3 x 4 from cell 36, expected from cell 35"),
        (3, torch.zeros(2, 6, 2, 8, 2), "sampling_locations must be"),
        (4, torch.zeros(2, 6, 2, 6), "attention_weights"),
        (4, torch.zeros(2, 6, 2, 7, device="meta"), "must be on one device"),
        (5, [4, -1, 4], "0 or more for each level"),
        (5, None, r"without num_points, sampling_locations must be \(B, Q, H, L, P, 2\)"),
    ],
)
def test_wrong_arguments_are_explained(index: int, wrong: object, message: str) -> None:
    arguments: list = list(make())
    arguments[index] = wrong
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*arguments)


def test_decomposed_needs_no_values_of_tensors() -> None:
    value, shapes, starts, locations, weights, num_points = make()
    expected = ms_deform_attn(value, shapes, starts, locations, weights, num_points)
    unknown = (torch.zeros_like(shapes), torch.zeros_like(starts))
    with decomposed_ms_deform_attn(LEVELS):
        found = ms_deform_attn(value, *unknown, locations, weights, num_points)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="levels"):
        ms_deform_attn(value, *unknown, locations, weights, num_points)


@needs_kernel
def test_an_unknown_variant_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VASTDET_CPU_VARIANT", "mmx")
    with pytest.raises(ValueError, match=r"'mmx'; this machine can run: .*baseline"):
        ms_deform_attn(*make())
