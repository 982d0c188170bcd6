# SPDX-License-Identifier: Apache-2.0
import logging
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vastdet.layers import (
    MultiScaleDeformableAttention,
    extension,
    extension_info,
    ms_deform_attn,
)
from vastdet.layers.ms_deform_attn_reference import accumulation_dtype, ms_deform_attn_reference

needs_kernel = pytest.mark.skipif(
    extension_info().library is None, reason="the kernels are not built"
)
VARIANTS = torch.ops.vastdet.cpu_variants() if extension_info().library else ["reference"]
LEVELS = [(7, 5), (3, 4), (1, 1)]
POINTS = [4, 0, 3]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VASTDET_CPU_VARIANT", request.param)
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(
    batch: int = 2,
    queries: int = 6,
    heads: int = 2,
    channels: int = 32,
    levels: list[tuple[int, int]] = LEVELS,
    points: list[int] = POINTS,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[int]]:
    """Arguments of the operator; a part of the locations is outside."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(levels)
    areas = shapes.prod(dim=1)
    samples = (batch, queries, heads, sum(points))
    kind = accumulation_dtype(dtype)
    value = torch.randn(batch, int(areas.sum()), heads, channels, generator=generator)
    locations = torch.rand(*samples, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(samples, generator=generator)
    starts = areas.cumsum(0) - areas
    return value.to(dtype), shapes, starts, locations.to(kind), weights.to(kind), points


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


def gradients(function, arguments: tuple, grad_output: Tensor) -> tuple[Tensor, ...]:
    inputs = [x.detach().requires_grad_() if i in (0, 3, 4) else x for i, x in enumerate(arguments)]
    return torch.autograd.grad(function(*inputs), [inputs[i] for i in (0, 3, 4)], grad_output)


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize("channels", [1, 5, 16, 32, 64, 120])
def test_is_equation_3(variant: str, function, channels: int) -> None:
    arguments = make(channels=channels)
    output = function(*arguments)
    # The largest difference was 3e-6.
    torch.testing.assert_close(output.double(), loops(*arguments), atol=2e-5, rtol=0)


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
    arguments = make(queries=queries, levels=[(17, 23), (9, 11), (2, 2)], dtype=dtype)
    exact = tuple(x.double() if i in (0, 3, 4) else x for i, x in enumerate(arguments))
    expected = ms_deform_attn_reference(*exact)
    output = ms_deform_attn(*arguments)
    assert output.dtype == dtype
    assert (output - expected).abs().max() <= bound * expected.abs().max()
    grad_output = torch.randn(output.shape).to(dtype)
    for got, wanted in zip(
        gradients(ms_deform_attn, arguments, grad_output),
        gradients(ms_deform_attn_reference, exact, grad_output.double()),
        strict=True,
    ):
        assert (got - wanted).abs().max() <= bound * wanted.abs().max()


def test_gradients_are_derivatives(variant: str) -> None:
    value, shapes, starts, locations, weights, points = make(1, 2, channels=3, dtype=torch.float64)
    # Away from the borders of cells, where the derivative jumps.
    size = shapes.flip(-1)[[i for i, count in enumerate(points) for _ in range(count)]].double()
    cells = locations * size - 0.5
    locations = (cells.floor() + 0.1 + 0.8 * (cells - cells.floor()) + 0.5) / size
    inputs = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, loc, w: ms_deform_attn(v, shapes, starts, loc, w, points), inputs
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
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


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
    arguments = make(batch, queries)
    output = function(*arguments)
    assert output.shape == (batch, queries, 64)
    for grad, i in zip(gradients(function, arguments, output), (0, 3, 4), strict=True):
        assert grad.shape == arguments[i].shape
        assert grad.isfinite().all()
    if queries == 0:
        assert not gradients(function, arguments, output)[0].any()


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize("place", [math.nan, math.inf, -math.inf, 1e30, -3.0, 7.5])
def test_outside_samples_zero_and_gets_no_gradient(variant: str, function, place: float) -> None:
    arguments = make()
    arguments[3][:, :, :, ::2, 1] = place
    clean = list(arguments)
    clean[3] = torch.where(arguments[3].isfinite(), arguments[3], -3.0)
    output = function(*arguments)
    torch.testing.assert_close(output.double(), loops(*clean), atol=2e-5, rtol=0)
    grads = gradients(function, arguments, torch.ones_like(output))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][:, :, :, ::2].any()
    assert not grads[2][:, :, :, ::2].any()


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize("queries", [1, 40])
def test_cells_that_nobody_samples_may_be_nan(variant: str, function, queries: int) -> None:
    arguments = make(1, queries, levels=[(20, 20), (6, 6)], points=[3, 2])
    value, locations = arguments[0], arguments[3]
    locations.mul_(0.2).sub_(0.1)  # the top left corner, partly outside
    used = gradients(function, arguments, torch.ones(1, queries, 64))[0] != 0
    value[~used.any(dim=-1)] = math.nan
    output = function(*arguments)
    assert output.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(function, arguments, torch.ones_like(output)))


def test_strides_do_not_matter(variant: str) -> None:
    value, shapes, starts, locations, weights, points = make(channels=16)
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


@needs_kernel
def test_opcheck() -> None:
    arguments = make(1, 3)
    for i in (0, 3, 4):
        arguments[i].requires_grad_()
    torch.library.opcheck(torch.ops.vastdet.ms_deform_attn.default, arguments)
    with torch.no_grad():
        torch.library.opcheck(
            torch.ops.vastdet.ms_deform_attn_backward.default,
            (torch.randn(1, 3, 64), *(x.detach() if i < 5 else x for i, x in enumerate(arguments))),
        )


def test_autocast_leaves_coordinates_alone() -> None:
    arguments = make()
    with torch.autocast("cpu", torch.bfloat16):
        output = ms_deform_attn(*arguments)
        doubled = ms_deform_attn(*make(dtype=torch.float64))
    assert output.dtype == torch.bfloat16
    assert doubled.dtype == torch.float64
    cast = (arguments[0].bfloat16(), *arguments[1:])
    assert torch.equal(output, ms_deform_attn(*cast))


def module_and_inputs(queries: int = 5) -> tuple[MultiScaleDeformableAttention, tuple]:
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=3, num_points=[4, 0, 3])
    torch.nn.init.normal_(module.sampling_offsets.weight)
    _, shapes, starts, *_ = make()
    query, value = torch.randn(2, queries, 32), torch.randn(2, 48, 32)
    return module, (query, value, torch.rand(2, queries, 1, 2), shapes, starts)


@needs_kernel
def test_compiles_whole() -> None:
    module, inputs = module_and_inputs()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), module(*inputs))
    compiled(*inputs).sum().backward()
    assert module.value_proj.weight.grad is not None


@needs_kernel
def test_exports() -> None:
    module, inputs = module_and_inputs()
    program = torch.export.export(module, inputs)
    torch.testing.assert_close(program.module()(*inputs), module(*inputs))


def test_checkpointing_changes_nothing() -> None:
    module, inputs = module_and_inputs()
    grads = []
    for run in (module, lambda *x: checkpoint(module, *x, use_reentrant=False)):
        module.zero_grad()
        run(*inputs).square().sum().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_without_kernels_warns_once_and_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = make()
    expected = ms_deform_attn(*arguments)
    monkeypatch.setattr(extension, "load", lambda: extension.Loaded(reason="not built"))
    extension.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(ms_deform_attn(*arguments), expected)
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


@needs_kernel
def test_an_unknown_variant_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VASTDET_CPU_VARIANT", "mmx")
    with pytest.raises(ValueError, match=r"'mmx'; this machine can run: .*baseline"):
        ms_deform_attn(*make())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("levels", [1, 3])
def test_locations_of_points_and_boxes(size: int, levels: int) -> None:
    module, (query, *_, shapes, _) = module_and_inputs()
    references = torch.rand(2, 5, levels, size)
    locations = module.locate(query, references, shapes)
    offsets = module.sampling_offsets(query).view(2, 5, 4, 7, 2)
    for t, level in enumerate([0, 0, 0, 0, 2, 2, 2]):
        reference = references[:, :, level if levels > 1 else 0]
        if size == 2:
            scale = 1 / shapes[level].flip(0)
        else:
            scale = reference[:, :, None, 2:] * (0.5 / POINTS[level])
        expected = reference[:, :, None, :2] + offsets[:, :, :, t] * scale
        torch.testing.assert_close(locations[:, :, :, t], expected)


def test_initial_offsets_look_around() -> None:
    module = MultiScaleDeformableAttention(16, num_heads=4, num_levels=2, num_points=2)
    bias = module.sampling_offsets.bias.view(4, 2, 2, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(bias[:, 0, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(bias[:, 1, 1], 2 * expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(module.weigh(torch.randn(1, 1, 16)), torch.full((1, 1, 4, 4), 0.25))


def test_padding_counts_as_zero() -> None:
    module, (query, value, *rest) = module_and_inputs()
    mask = torch.rand(2, 48) > 0.5
    other = torch.where(mask[..., None], math.nan, value)
    torch.testing.assert_close(module(query, value, *rest, mask), module(query, other, *rest, mask))


def test_the_module_explains_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads, got 30 and 4"):
        MultiScaleDeformableAttention(30, num_heads=4)
    with pytest.raises(ValueError, match=r"num_points must be one positive number, or 3 numbers"):
        MultiScaleDeformableAttention(32, num_levels=3, num_points=[1, 2])
    module, (query, value, _, *rest) = module_and_inputs()
    with pytest.raises(ValueError, match="reference_points must be"):
        module(query, value, torch.rand(2, 5, 1, 3), *rest)


def test_equals_the_module_of_transformers() -> None:
    pytest.importorskip("transformers")
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr import modeling_deformable_detr

    config = DeformableDetrConfig(d_model=32, num_feature_levels=3)
    other = modeling_deformable_detr.DeformableDetrMultiscaleDeformableAttention(
        config, num_heads=4, n_points=2
    )
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=3, num_points=2)
    torch.nn.init.normal_(module.sampling_offsets.weight)
    torch.nn.init.normal_(module.attention_weights.weight)
    other.load_state_dict(module.state_dict())
    query, value = torch.randn(2, 5, 32), torch.randn(2, 48, 32)
    _, shapes, starts, *_ = make()
    mask = torch.rand(2, 48) > 0.7
    for size in (2, 4):
        references = torch.rand(2, 5, 3, size)
        expected = other(
            hidden_states=query,
            attention_mask=~mask,
            encoder_hidden_states=value,
            reference_points=references,
            spatial_shapes=shapes,
            spatial_shapes_list=LEVELS,
            level_start_index=starts,
        )[0]
        # The largest difference was 5e-7.
        torch.testing.assert_close(
            module(query, value, references, shapes, starts, mask), expected, atol=1e-5, rtol=0
        )
