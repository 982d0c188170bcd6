# SPDX-License-Identifier: Apache-2.0
"""How the operator behaves in torch: opcheck, compile, export, autocast, checkpoints, DDP."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from tests.layers.ms_deform_attn_inputs import (
    DIFFERENTIABLE,
    ORDER,
    assert_near,
    gradients,
    make,
    module_and_inputs,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vastdet.layers import MultiScaleDeformableAttention, ms_deform_attn
from vastdet.layers.ms_deform_attn_reference import ms_deform_attn_reference

FORWARD_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def parameter_gradients(module: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output.square().sum(), list(module.parameters())))


def assert_same_results(module: nn.Module, got: Tensor, expected: Tensor, bound: float) -> None:
    """Outputs of a module, and the gradients of its parameters from them."""
    assert_near(got, expected, bound)
    for grad, wanted in zip(
        parameter_gradients(module, got), parameter_gradients(module, expected), strict=True
    ):
        assert_near(grad, wanted, bound)


def test_opcheck(device: str) -> None:
    arguments = make(1, 3, device=device)
    for i in DIFFERENTIABLE:
        arguments[i].requires_grad_()
    torch.library.opcheck(torch.ops.vastdet.ms_deform_attn.default, arguments)


def test_opcheck_of_the_backward_pass(device: str) -> None:
    grad_output = torch.randn(1, 3, 64, device=device)
    torch.library.opcheck(
        torch.ops.vastdet.ms_deform_attn_backward.default,
        (grad_output, *make(1, 3, device=device)),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_opcheck_of_types_strides_and_no_queries(device: str, dtype: torch.dtype) -> None:
    value, *rest = make(2, 3, channels=5, dtype=dtype, device=device)
    strided = value.transpose(1, 3).contiguous().transpose(1, 3).requires_grad_()
    empty = [make(*sizes, dtype=dtype, device=device) for sizes in ((2, 0), (0, 3))]
    for arguments in ((strided, *rest), *empty):
        torch.library.opcheck(
            torch.ops.vastdet.ms_deform_attn.default, arguments, test_utils=FORWARD_CHECKS
        )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(device: str, dynamic: bool) -> None:
    module, _ = module_and_inputs(device=device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for queries in (5, 9):
        inputs = module_and_inputs(queries, device)[1]
        assert_same_results(module, compiled(*inputs), module(*inputs), ORDER[device])


@pytest.mark.slow
def test_inductor_compiles_the_module(device: str) -> None:
    module, _ = module_and_inputs(device=device)
    compiled = torch.compile(module, fullgraph=True)
    for autocast in (False, True):
        inputs = module_and_inputs(9, device)[1]
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            output, expected = compiled(*inputs), module(*inputs)
        assert output.dtype == expected.dtype
        # Inductor fuses, which rounds otherwise: up to 5e-7 of the output and 2e-6 of a gradient.
        assert_same_results(module, output, expected, 2**-7 if autocast else 1e-5)


def test_exports_with_any_number_of_queries(device: str) -> None:
    module, inputs = module_and_inputs(device=device)
    queries = torch.export.Dim("queries", min=2)
    dynamic = ({1: queries}, None, {1: queries}, None, None, None)
    program = torch.export.export(module, (*inputs, None), dynamic_shapes=dynamic)
    calls = [node.target for node in program.graph.nodes if "vastdet" in str(node.target)]
    assert calls == [torch.ops.vastdet.ms_deform_attn.default], "one call, not its parts"
    other = module_and_inputs(11, device)[1]
    torch.testing.assert_close(program.module()(*other, None), module(*other))


# What a process does that never loaded the compiled kernels.
WITHOUT_LIBRARY = """
import torch
from tests.layers.ms_deform_attn_inputs import module_and_inputs
from vastdet.layers import extension_info
assert extension_info().library is None
module, inputs = module_and_inputs()
expected = module(*inputs)
program = torch.export.export(module, (*inputs, None))
compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
for output in (program.module()(*inputs, None), compiled(*inputs)):
    assert torch.equal(output, expected)
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(output.sum(), parameters)
    wanted = torch.autograd.grad(module(*inputs).sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))
"""


@pytest.mark.slow
def test_compiles_and_exports_without_the_library(repository: Path, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("_C.*", "__pycache__")
    shutil.copytree(repository / "projects", tmp_path / "projects", ignore=ignored)
    environment = {"PYTHONPATH": str(tmp_path / "projects"), "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARY],
        capture_output=True,
        text=True,
        check=False,
        cwd=repository,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(device: str, use_reentrant: bool) -> None:
    module, (query, *rest) = module_and_inputs(device=device)
    query.requires_grad_()
    plain = parameter_gradients(module, module(query, *rest))
    output = checkpoint(module, query, *rest, use_reentrant=use_reentrant)
    output.square().sum().backward()
    for parameter, expected in zip(module.parameters(), plain, strict=True):
        assert_near(parameter.grad, expected, ORDER[device])


@pytest.mark.parametrize("index", DIFFERENTIABLE)
def test_one_input_alone_may_need_a_gradient(device: str, index: int) -> None:
    arguments = make(device=device)
    every = gradients(ms_deform_attn, arguments, torch.ones(2, 6, 64, device=device))
    alone = arguments[index].detach().requires_grad_()
    output = ms_deform_attn(*arguments[:index], alone, *arguments[index + 1 :])
    (gradient,) = torch.autograd.grad(output.sum(), alone)
    assert_near(gradient, every[DIFFERENTIABLE.index(index)], ORDER[device])


def test_a_second_derivative_is_an_error(device: str) -> None:
    arguments = make(dtype=torch.float64, device=device)
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
def test_gradients_have_the_types_of_the_inputs(device: str, dtype: torch.dtype) -> None:
    given = make(device=device)
    arguments = [x.to(dtype) if i in DIFFERENTIABLE else x for i, x in enumerate(given)]
    output = ms_deform_attn(*arguments)
    assert output.dtype == dtype
    assert all(g.dtype == dtype for g in gradients(ms_deform_attn, arguments, output))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_coordinates_alone(device: str, dtype: torch.dtype) -> None:
    arguments = make(device=device)
    cast = (arguments[0].to(dtype), *arguments[1:])
    expected = ms_deform_attn(*cast)
    with torch.autocast(device, dtype):
        output = ms_deform_attn(*arguments)
        grads = gradients(ms_deform_attn, arguments, torch.ones_like(output))
        exact = make(dtype=torch.float64, device=device)
        assert ms_deform_attn(*exact).dtype == torch.float64
    assert output.dtype == dtype
    assert torch.equal(output, expected)
    assert all(g.dtype == torch.float32 for g in grads)


def test_the_module_locates_in_float32_under_autocast(device: str) -> None:
    module, (query, value, references, shapes, starts) = module_and_inputs(device=device)
    with torch.autocast(device, torch.bfloat16):
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


def test_meta_tensors_have_shapes() -> None:
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=3, num_points=2).to("meta")
    _, shapes, starts, *_ = (x.to("meta") if isinstance(x, Tensor) else x for x in make())
    query, value = torch.empty(2, 5, 32, device="meta"), torch.empty(2, 48, 32, device="meta")
    references = torch.empty(2, 5, 1, 4, device="meta")
    assert module(query, value, references, shapes, starts).shape == (2, 5, 32)
