# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention on the CPU against transformers' grid_sample, interleaved.

    python benchmarks/ms_deform_attn.py [--repeats 15] [--threads 2]

Prints medians and their ratios, the peak of extra memory of each (in processes of their own), and
the kernel's share of what this machine reaches in a copy loop and in a matrix product.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import (
    MultiScaleDeformableAttention,
)

from vastdet.layers import extension_info, ms_deform_attn

LEVELS = [(100, 134), (50, 67), (25, 34), (13, 17)]  # an image of 800 x 1066
HEADS, CHANNELS, POINTS = 8, 32, 4
NUM_CELLS = sum(height * width for height, width in LEVELS)


def arguments(num_queries: int | None) -> tuple[Tensor, ...]:
    """Arguments of the operator: all cells about themselves, or queries anywhere."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(LEVELS)
    starts = shapes.prod(dim=1).cumsum(0) - shapes.prod(dim=1)
    if num_queries is None:
        centers = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
            for h, w in LEVELS
        ]
        points = torch.cat(centers)
    else:
        points = torch.rand(num_queries, 2, generator=generator)
    samples = (1, len(points), HEADS, len(LEVELS), POINTS)
    offsets = 2 * torch.randn(*samples, 2, generator=generator) / shapes.flip(-1)[:, None]
    weights = torch.rand(samples, generator=generator).flatten(3).softmax(-1).view(samples)
    value = torch.randn(1, NUM_CELLS, HEADS, CHANNELS, generator=generator)
    return value, shapes, starts, points[:, None, None, None] + offsets, weights


def ours(value: Tensor, shapes: Tensor, starts: Tensor, *samples: Tensor) -> Tensor:
    """The operator of vastdet."""
    return ms_deform_attn(value, shapes, starts, *samples)


def theirs(value: Tensor, shapes: Tensor, starts: Tensor, *samples: Tensor) -> Tensor:
    """The operator of transformers."""
    samples = tuple(x.to(value.dtype) for x in samples)
    return MultiScaleDeformableAttention()(value, shapes, LEVELS, starts, *samples, 64)


def forward_backward(function: Callable[..., Tensor], given: tuple[Tensor, ...]) -> None:
    """One training step of the operator."""
    inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in given]
    function(*inputs).sum().backward()


def case(name: str, function: Callable[..., Tensor]) -> Callable[[], object]:
    """What is timed, by name."""
    given = arguments(900 if "decoder" in name else None)
    if "bf16" in name:
        given = (given[0].bfloat16(), *given[1:])
    if "backward" in name:
        return lambda: forward_backward(function, given)
    return lambda: function(*given)


CASES = ("encoder forward", "encoder forward+backward", "decoder forward", "encoder forward bf16")


def compare(name: str, repeats: int) -> None:
    """Time both in turn and print a row of the table."""
    runs = {"ours": case(name, ours), "theirs": case(name, theirs)}
    times: dict[str, list[float]] = {key: [] for key in runs}
    with torch.set_grad_enabled("backward" in name):
        for repeat in range(repeats + 2):
            for key, run in runs.items():
                start = time.perf_counter()
                run()
                if repeat >= 2:
                    times[key].append(time.perf_counter() - start)
    mine, other = (1e3 * statistics.median(times[key]) for key in ("ours", "theirs"))
    print(f"| {name} | {other:.1f} | {mine:.1f} | {other / mine:.1f}x |", flush=True)


def memory(name: str, function: Callable[..., Tensor]) -> float:
    """MB by which one run raises the process's peak."""
    run = case(name, function)
    with torch.set_grad_enabled("backward" in name):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = peak_memory()
        run()
    return peak_memory() - before


def peak_memory() -> float:
    """MB of this process at its highest; getrusage would count the parent's peak as well."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def machine() -> tuple[float, float]:
    """GB/s of a large copy (read and write) and GFLOP/s of a matrix product, best of ten."""
    source, target = torch.rand(2, 32 << 20)
    square = torch.rand(1024, 1024)
    copy, product = [], []
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        middle = time.perf_counter()
        square @ square
        copy.append(middle - start)
        product.append(time.perf_counter() - middle)
    return 2 * source.nbytes / min(copy) / 1e9, 2 * 1024**3 / min(product) / 1e9


def share_of_machine(repeats: int) -> None:
    """Print what part of the machine's speed the encoder's forward pass reaches."""
    bandwidth, arithmetic = machine()
    given = arguments(None)
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            output = ours(*given)
            times.append(time.perf_counter() - start)
    best = min(times)
    flops = 2 * 4 * NUM_CELLS * HEADS * CHANNELS * len(LEVELS) * POINTS
    smallest = given[0].nbytes + given[3].nbytes + given[4].nbytes + output.nbytes
    print(
        f"machine: copy {bandwidth:.1f} GB/s, matrix product {arithmetic:.1f} GFLOP/s; kernel: "
        f"{flops / best / 1e9:.1f} GFLOP/s ({flops / best / 1e9 / arithmetic:.0%}), and "
        f"{smallest / best / 1e9:.1f} GB/s of data that must move "
        f"({smallest / best / 1e9 / bandwidth:.0%}); best of {repeats}"
    )


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", nargs=2, help="internal: measure one case in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        name, whose = options.memory
        print(memory(name, ours if whose == "ours" else theirs))
        return
    print(f"{extension_info().cpu_variant}, {options.threads} threads, torch {torch.__version__}")
    print("| case | transformers, ms | vastdet, ms | ratio |\n|---|---|---|---|")
    for name in CASES:
        compare(name, options.repeats)
    for name in CASES[:2]:
        peaks = [
            float(
                subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, "--memory", name, whose],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.split()[-1]
            )
            for whose in ("theirs", "ours")
        ]
        print(f"extra memory, {name}: transformers {peaks[0]:.0f} MB, vastdet {peaks[1]:.0f} MB")
    share_of_machine(options.repeats)


if __name__ == "__main__":
    main()
