# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel's own file, compiled for the host and run there against plain loops.

Letters: B images, S cells, H heads, D channels, Q queries, L levels, T samples. The threads of a
block are fibers that change places at random where they wait (cuda_on_host/).
"""

import itertools
import math
import platform
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent / "cuda_on_host"
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Largest difference from loops in float64, in units of the largest value.
TOLERANCE = {
    torch.float32: 2e-6,
    torch.float64: 1e-14,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}
FORWARD, BACKWARD, DETERMINISTIC = 0, 1, 2

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="_Float16 and fibers: x86-64 only"),
]


def compile_kernel(folder: Path, source: Path, csrc: Path, *flags: str) -> Path:
    runner = folder / "runner"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    includes = [f"-I{HERE / 'include'}", f"-I{csrc}"]
    sources = ["-x", "c++", str(source), str(HERE / "runner.cpp")]
    command = ["g++", "-std=c++17", "-O1", *warnings, "-DVASTDET_CUDA_ON_HOST", *flags, *includes]
    subprocess.run([*command, *sources, "-o", str(runner)], check=True)
    return runner


@pytest.fixture(scope="session")
def csrc(repository: Path) -> Path:
    return repository / "projects/vastdet/layers/csrc/ms_deform_attn"


@pytest.fixture(scope="session")
def runner(csrc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda_on_host")
    return compile_kernel(folder, csrc / "cuda_kernel.cu", csrc, "-D__CUDA_ARCH__=900")


def problem(
    dtype: torch.dtype = torch.float32,
    D: int = 32,
    points: tuple[int, ...] = (3, 0, 4),
    B: int = 2,
    Q: int = 5,
    H: int = 2,
    seed: int = 0,
) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = [(4 + level, 7 - level) for level in range(len(points))]
    sizes = [h * w for h, w in shapes]
    T = sum(points)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return SimpleNamespace(
        points=points,
        shapes=shapes,
        starts=[sum(sizes[:i]) for i in range(len(sizes))],
        value=normal(B, sum(sizes), H, D).to(dtype),
        locations=(normal(B, Q, H, T, 2) * 0.4 + 0.5).to(wide),
        weights=normal(B, Q, H, T).to(wide),
        grad=normal(B, Q, H, D).to(dtype),
    )


def run(
    runner: Path, p: SimpleNamespace, what: int, seed: int = 1, major: int = 9, offset: int = 0
) -> list[torch.Tensor]:
    B, S, H, D = p.value.shape
    Q, T = p.weights.shape[1], p.weights.shape[3]
    header = [what, TYPES.index(p.value.dtype), B, S, H, D, Q, len(p.points), T]
    integers = [*header, seed, major, offset, *p.points, *itertools.chain(*p.shapes), *p.starts]
    tensors = [p.value, p.locations, p.weights, *([p.grad] if what else [])]
    raw = [t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors]
    data = np.array(integers, np.int64).tobytes() + b"".join(raw)
    result = subprocess.run([str(runner)], input=data, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    wide = p.weights.dtype
    value_type = wide if what == BACKWARD else p.value.dtype
    forms = [(p.value.dtype, (B, Q, H, D))]
    if what:
        forms = [(value_type, p.value.shape), (wide, p.locations.shape), (wide, p.weights.shape)]
    outputs, at = [], 0
    for dtype, shape in forms:
        count = math.prod(shape)
        part = torch.frombuffer(bytearray(result.stdout), dtype=dtype, count=count, offset=at)
        outputs.append(part.reshape(shape))
        at += count * dtype.itemsize
    assert at == len(result.stdout)
    return outputs


def loops(p: SimpleNamespace) -> list[torch.Tensor]:
    """Output and the gradients of value, locations and weights, sample by sample, in float64."""
    value, grad = p.value.double(), p.grad.double()
    output = torch.zeros_like(grad)
    grads = [torch.zeros(t.shape, dtype=torch.float64) for t in (value, p.locations, p.weights)]
    levels = [level for level, count in enumerate(p.points) for _ in range(count)]
    for b, q, h, t in np.ndindex(*p.weights.shape):
        height, width = p.shapes[levels[t]]
        # The cell is that of the coordinate in the accumulation type.
        x, y = p.locations[b, q, h, t] * torch.tensor([width, height]) - 0.5
        x, y, weight = float(x), float(y), float(p.weights[b, q, h, t])
        if not (-1 < x < width and -1 < y < height):
            continue
        x0, y0 = math.floor(x), math.floor(y)
        for cx, cy in itertools.product((x0, x0 + 1), (y0, y0 + 1)):
            if not (0 <= cx < width and 0 <= cy < height):
                continue
            wx, wy = 1 - abs(x - cx), 1 - abs(y - cy)
            cell = p.starts[levels[t]] + cy * width + cx
            output[b, q, h] += weight * wx * wy * value[b, cell, h]
            dot = float(value[b, cell, h] @ grad[b, q, h])
            grads[0][b, cell, h] += weight * wx * wy * grad[b, q, h]
            grads[1][b, q, h, t, 0] += weight * width * wy * dot * (1 if cx > x0 else -1)
            grads[1][b, q, h, t, 1] += weight * height * wx * dot * (1 if cy > y0 else -1)
            grads[2][b, q, h, t] += wx * wy * dot
    return [output, *grads]


def assert_near(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    scale = max(float(expected.abs().max()), 1e-30)
    assert float((got.double() - expected).abs().max()) <= tolerance * scale


def check(runner: Path, p: SimpleNamespace, **how: int) -> None:
    output, *grads = loops(p)
    tolerance = TOLERANCE[p.value.dtype]
    sums = 1e-14 if p.value.dtype == torch.float64 else 5e-6  # what is not rounded to half
    assert_near(run(runner, p, FORWARD, **how)[0], output, tolerance)
    for what in (BACKWARD, DETERMINISTIC):
        got = run(runner, p, what, **how)
        for index, expected in enumerate(grads):
            rounded = what == DETERMINISTIC and index == 0
            assert_near(got[index], expected, tolerance if rounded else sums)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("D", [1, 5, 16, 24, 32, 64, 256])
def test_equals_loops(runner: Path, dtype: torch.dtype, D: int) -> None:
    check(runner, problem(dtype, D, Q=3 if D > 64 else 5))


@pytest.mark.parametrize("points", [(1,), (0, 1), (40,), (2, 2, 2, 2, 2)])
def test_equals_loops_at_other_point_counts(runner: Path, points: tuple[int, ...]) -> None:
    check(runner, problem(points=points, Q=37, B=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_misaligned_values_and_old_devices_take_single_channels(
    runner: Path, dtype: torch.dtype
) -> None:
    check(runner, problem(dtype), offset=1)
    check(runner, problem(dtype), major=8)


@pytest.mark.parametrize("what", [FORWARD, BACKWARD, DETERMINISTIC])
def test_bad_locations_sample_nothing(runner: Path, what: int) -> None:
    p = problem()
    bad = [math.nan, math.inf, -math.inf, 1e30, -5.0]
    for t, number in enumerate(bad):
        p.locations[0, t % 5, 0, t, t % 2] = number
        p.weights[0, t % 5, 0, t] = math.inf if t else math.nan
    for got, expected in zip(
        run(runner, p, what), loops(p)[1:] if what else loops(p)[:1], strict=True
    ):
        if what == DETERMINISTIC and got.shape == p.value.shape:
            # The bound of this image and head is not finite, as cuda_kernel.h says.
            assert got[0, :, 0].isnan().all()
            got, expected = got[1], expected[1]
        assert_near(got, expected, 5e-6)


def test_nan_in_cells_that_nobody_samples_does_not_leak(runner: Path) -> None:
    p = problem(points=(3, 0, 4))
    p.value[:, p.starts[1] : p.starts[2]] = math.nan
    assert run(runner, p, FORWARD)[0].isfinite().all()
    assert all(g.isfinite().all() for g in run(runner, p, BACKWARD))


@pytest.mark.parametrize("dtype", TYPES)
def test_deterministic_gradients_do_not_depend_on_the_order(
    runner: Path, dtype: torch.dtype
) -> None:
    p = problem(dtype, Q=40)
    first, second = (run(runner, p, DETERMINISTIC, seed=seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_order_of_threads_changes_atomic_sums(runner: Path) -> None:
    p = problem(Q=40)
    first, second = (run(runner, p, BACKWARD, seed=seed)[0] for seed in (1, 2))
    assert not torch.equal(first, second)


def test_deterministic_gradients_keep_their_range(runner: Path) -> None:
    for scale in (1e-30, 1e30):
        p = problem()
        p.grad *= scale
        assert_near(run(runner, p, DETERMINISTIC)[0], loops(p)[1], 2e-6)


# The barriers of the forward kernel are the first two, those of the backward kernel the next two.
# The last cannot be found here: the shuffles before it hold the fibers back as well, though on a
# device they do not order memory.
@pytest.mark.slow
@pytest.mark.parametrize(("barrier", "what"), [(0, FORWARD), (1, FORWARD), (2, DETERMINISTIC)])
def test_a_missing_barrier_is_found(
    runner: Path, csrc: Path, tmp_path: Path, barrier: int, what: int
) -> None:
    parts = (csrc / "cuda_kernel.cu").read_text("utf-8").split("__syncwarp();")
    assert len(parts) == 5
    mutated = tmp_path / "cuda_kernel.cu"
    kept = ["__syncwarp();" if i != barrier else "" for i in range(4)]
    mutated.write_text("".join(map("".join, zip(parts, [*kept, ""], strict=True))))
    broken = compile_kernel(tmp_path, mutated, csrc, "-D__CUDA_ARCH__=900")
    p = problem(points=(9, 0, 8), Q=40)
    pairs = zip(run(broken, p, what), run(runner, p, what), strict=True)
    # Each result: all three gradients of the backward pass, which is deterministic here.
    assert not any(torch.equal(got, good) for got, good in pairs)


@pytest.mark.slow
def test_memory_and_undefined_behaviour(csrc: Path, tmp_path: Path) -> None:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D__CUDA_ARCH__=800"]
    sanitized = compile_kernel(tmp_path, csrc / "cuda_kernel.cu", csrc, *flags)
    for dtype, D in itertools.product(TYPES, (5, 32)):
        check(sanitized, problem(dtype, D))
