# SPDX-License-Identifier: Apache-2.0
"""The CUDA operator on a device: against the CPU operator. Not yet run anywhere."""

from collections.abc import Iterator

import pytest
import torch

from vastdet.layers import extension_info, ms_deform_attn

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(
        not extension_info().cuda_architectures, reason="the CUDA kernel is not built"
    ),
]
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
        scale = expected.double().abs().max()
        assert (got.cpu().double() - expected.double()).abs().max() <= TOLERANCE[dtype] * scale


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", TYPES)
def test_deterministic_gradients_repeat(dtype: torch.dtype) -> None:
    tensors = inputs(dtype)
    first, second = results(tensors, "cuda"), results(tensors, "cuda")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_large_shapes_equal_the_cpu() -> None:
    tensors = inputs(torch.float32, Q=20_000)
    for got, expected in zip(results(tensors, "cuda"), results(tensors, "cpu"), strict=True):
        assert (got.cpu() - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_no_queries_and_no_images() -> None:
    for sizes in ({"B": 0}, {"Q": 0}):
        assert all(not t.any() for t in results(inputs(torch.float32, **sizes), "cuda"))


def test_runs_on_the_current_stream() -> None:
    tensors = [t.detach().cuda() for t in inputs(torch.float32)]
    expected = ms_deform_attn(*tensors)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        got = ms_deform_attn(*tensors)
    stream.synchronize()
    assert torch.equal(got, expected)
