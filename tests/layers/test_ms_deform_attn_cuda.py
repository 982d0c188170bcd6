# SPDX-License-Identifier: Apache-2.0
"""What only a CUDA device has; tests of all devices are beside this file. Not yet run anywhere."""

from collections.abc import Callable, Iterator

import pytest
import torch
from tests.layers.ms_deform_attn_inputs import CUDA_MARKS, assert_near, make

from vastdet.layers import ms_deform_attn

pytestmark = CUDA_MARKS
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def inputs(dtype: torch.dtype, B: int = 2, Q: int = 50, D: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = torch.tensor([[20, 30], [10, 15]])
    starts = torch.tensor([0, 600])
    value = torch.randn(B, 750, 8, D, generator=generator).to(dtype).requires_grad_()
    locations = torch.rand(B, Q, 8, 2, 4, 2, generator=generator).to(wide).requires_grad_()
    weights = torch.rand(B, Q, 8, 2, 4, generator=generator).to(wide).requires_grad_()
    return [value, shapes, starts, locations, weights]


def results(tensors: list[torch.Tensor], device: str) -> list[torch.Tensor]:
    moved = [t.detach().to(device).requires_grad_(t.requires_grad) for t in tensors]
    output = ms_deform_attn(*moved)
    leaves = [t for t in moved if t.requires_grad]
    grad = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("D", [5, 32, 256])
def test_equals_the_cpu(dtype: torch.dtype, D: int) -> None:
    tensors = inputs(dtype, D=D)
    for got, expected in zip(results(tensors, "cuda"), results(tensors, "cpu"), strict=True):
        assert_near(got.double(), expected.double(), TOLERANCE[dtype])


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", TYPES)
def test_deterministic_gradients_repeat(dtype: torch.dtype) -> None:
    tensors = inputs(dtype)
    first, second = results(tensors, "cuda"), results(tensors, "cuda")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_large_shapes_equal_the_cpu() -> None:
    tensors = inputs(torch.float32, Q=20_000)
    for got, expected in zip(results(tensors, "cuda"), results(tensors, "cpu"), strict=True):
        assert_near(got, expected, 1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_runs_on_a_device_that_is_not_the_current_one() -> None:
    tensors = inputs(torch.float32)
    assert torch.cuda.current_device() == 0
    for got, expected in zip(results(tensors, "cuda:1"), results(tensors, "cpu"), strict=True):
        assert got.device == torch.device("cuda:1")
        assert_near(got, expected, TOLERANCE[torch.float32])


def test_levels_on_another_device_are_an_error() -> None:
    for index in (1, 2):
        tensors = [t.detach().cuda() for t in inputs(torch.float32)]
        tensors[index] = tensors[index].cpu()
        with pytest.raises(ValueError, match="must be int64 on cuda:0, as value is"):
            ms_deform_attn(*tensors)


def test_too_many_levels_are_an_error() -> None:
    arguments = make(levels=[(1, 1)] * 257, points=[1] * 257, device="cuda")
    with pytest.raises(ValueError, match="257 levels, the CUDA kernel takes up to 256"):
        ms_deform_attn(*arguments)


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """A function from whose call on waiting for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_device(no_waiting: Callable[[], None]) -> None:
    tensors = [t.detach().cuda().requires_grad_(t.requires_grad) for t in inputs(torch.float32)]
    leaves = [t for t in tensors if t.requires_grad]
    no_waiting()
    output = ms_deform_attn(*tensors)
    torch.autograd.grad(output, leaves, torch.ones_like(output))


def test_runs_on_the_current_stream() -> None:
    tensors = [t.detach().cuda() for t in inputs(torch.float32)]
    expected = ms_deform_attn(*tensors)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        got = ms_deform_attn(*tensors)
    stream.synchronize()
    assert torch.equal(got, expected)
