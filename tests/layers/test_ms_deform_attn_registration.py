# SPDX-License-Identifier: Apache-2.0
"""How the operator behaves in torch: opcheck, compile, export, autocast, checkpoints, DDP."""

from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from tests.layers.ms_deform_attn_inputs import (
    DIFFERENTIABLE,
    gradients,
    make,
    module_and_inputs,
    needs_kernel,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vastdet.layers import MultiScaleDeformableAttention, ms_deform_attn
from vastdet.layers.ms_deform_attn_reference import ms_deform_attn_reference

FORWARD_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def parameter_gradients(module: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output.square().sum(), list(module.parameters())))


@needs_kernel
def test_opcheck() -> None:
    arguments = make(1, 3)
    for i in DIFFERENTIABLE:
        arguments[i].requires_grad_()
    torch.library.opcheck(torch.ops.vastdet.ms_deform_attn.default, arguments)


@needs_kernel
def test_opcheck_of_the_backward_pass() -> None:
    torch.library.opcheck(
        torch.ops.vastdet.ms_deform_attn_backward.default, (torch.randn(1, 3, 64), *make(1, 3))
    )


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_opcheck_of_types_strides_and_no_queries(dtype: torch.dtype) -> None:
    value, *rest = make(2, 3, channels=5, dtype=dtype)
    strided = value.transpose(1, 3).contiguous().transpose(1, 3).requires_grad_()
    for arguments in ((strided, *rest), make(2, 0, dtype=dtype), make(0, 3, dtype=dtype)):
        torch.library.opcheck(
            torch.ops.vastdet.ms_deform_attn.default, arguments, test_utils=FORWARD_CHECKS
        )


@needs_kernel
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic: bool) -> None:
    module, inputs = module_and_inputs()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for queries in (5, 9):
        inputs = module_and_inputs(queries)[1]
        output, expected = compiled(*inputs), module(*inputs)
        # There was no difference.
        torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            parameter_gradients(module, output), parameter_gradients(module, expected)
        )


@needs_kernel
def test_exports_with_any_number_of_queries() -> None:
    module, inputs = module_and_inputs()
    queries = torch.export.Dim("queries", min=2)
    dynamic = ({1: queries}, None, {1: queries}, None, None, None)
    program = torch.export.export(module, (*inputs, None), dynamic_shapes=dynamic)
    calls = [node.target for node in program.graph.nodes if "vastdet" in str(node.target)]
    assert calls == [torch.ops.vastdet.ms_deform_attn.default], "one call, not its parts"
    other = module_and_inputs(11)[1]
    torch.testing.assert_close(program.module()(*other, None), module(*other))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(use_reentrant: bool) -> None:
    module, (query, *rest) = module_and_inputs()
    query.requires_grad_()
    plain = parameter_gradients(module, module(query, *rest))
    output = checkpoint(module, query, *rest, use_reentrant=use_reentrant)
    output.square().sum().backward()
    for parameter, expected in zip(module.parameters(), plain, strict=True):
        assert torch.equal(parameter.grad, expected)


@pytest.mark.parametrize("index", DIFFERENTIABLE)
def test_one_input_alone_may_need_a_gradient(index: int) -> None:
    arguments = make()
    every = gradients(ms_deform_attn, arguments, torch.ones(2, 6, 64))
    alone = arguments[index].detach().requires_grad_()
    output = ms_deform_attn(*arguments[:index], alone, *arguments[index + 1 :])
    (gradient,) = torch.autograd.grad(output.sum(), alone)
    assert torch.equal(gradient, every[DIFFERENTIABLE.index(index)])


@needs_kernel
def test_a_second_derivative_is_an_error() -> None:
    arguments = make(dtype=torch.float64)
    inputs = [arguments[i].requires_grad_() for i in DIFFERENTIABLE]
    output = ms_deform_attn(*arguments).square().sum()
    first = torch.autograd.grad(output, inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative; take the first without"):
        torch.autograd.grad(first[0].sum(), inputs)


def test_the_reference_has_a_second_derivative() -> None:
    value, shapes, starts, _, weights, points = make(1, 2, 1, 2, dtype=torch.float64)
    # A fifth of a cell and more away from the borders of all cells of these levels.
    locations = torch.full((1, 2, 1, 7, 2), 0.63, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradgradcheck(
        lambda v, x, w: ms_deform_attn_reference(v, shapes, starts, x, w, points), inputs
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_have_the_types_of_the_inputs(dtype: torch.dtype) -> None:
    arguments = [x.to(dtype) if i in DIFFERENTIABLE else x for i, x in enumerate(make())]
    output = ms_deform_attn(*arguments)
    assert output.dtype == dtype
    assert all(g.dtype == dtype for g in gradients(ms_deform_attn, arguments, output))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_coordinates_alone(dtype: torch.dtype) -> None:
    arguments = make()
    cast = (arguments[0].to(dtype), *arguments[1:])
    expected = ms_deform_attn(*cast)
    with torch.autocast("cpu", dtype):
        output = ms_deform_attn(*arguments)
        grads = gradients(ms_deform_attn, arguments, torch.ones_like(output))
        assert ms_deform_attn(*make(dtype=torch.float64)).dtype == torch.float64
    assert output.dtype == dtype
    assert torch.equal(output, expected)
    assert all(g.dtype == torch.float32 for g in grads)


def test_the_module_locates_in_float32_under_autocast() -> None:
    module, (query, value, references, shapes, starts) = module_and_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        assert module.locate(query, references, shapes).dtype == torch.float32
        assert module.weigh(query).dtype == torch.float32
        output = module(query, value, references, shapes, starts)
    assert output.dtype == torch.bfloat16
    module.zero_grad()
    output.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


def train_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    module, (query, value, references, shapes, starts) = module_and_inputs()
    model = nn.parallel.DistributedDataParallel(module)
    own = [x[rank : rank + 1] for x in (query, value, references)]
    model(*own, shapes, starts).square().sum().backward()
    torch.save([p.grad for p in module.parameters()], f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


def fork_ranks(_: int, folder: str) -> None:
    torch.multiprocessing.start_processes(train_rank, args=(folder,), nprocs=2, start_method="fork")


@pytest.mark.slow
def test_two_processes_share_their_gradients(tmp_path: Path) -> None:
    # Autograd has run in this process, which forbids to fork it. A fresh one is made, and forked.
    torch.multiprocessing.spawn(fork_ranks, args=(str(tmp_path),))
    module, inputs = module_and_inputs()
    # DDP takes the mean over ranks, and each has one image of the two.
    expected = [g / 2 for g in parameter_gradients(module, module(*inputs))]
    for rank in range(2):
        grads = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        # The largest difference was 9e-8 of the largest element.
        for got, wanted in zip(grads, expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=2e-6 * float(wanted.abs().max()), rtol=0)


@needs_kernel
def test_meta_tensors_have_shapes() -> None:
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=3, num_points=2).to("meta")
    _, shapes, starts, *_ = (x.to("meta") if isinstance(x, Tensor) else x for x in make())
    query, value = torch.empty(2, 5, 32, device="meta"), torch.empty(2, 48, 32, device="meta")
    references = torch.empty(2, 5, 1, 4, device="meta")
    assert module(query, value, references, shapes, starts).shape == (2, 5, 32)
