# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention on the CPU against transformers' grid_sample, interleaved.

    python benchmarks/ms_deform_attn.py [--repeats 15] [--threads 2] [--processor-time]

Prints medians with quartiles and the ratios of the pairs, the peak of extra memory of each (in
processes of their own), and the kernel's share of what this machine reaches in a triad and in fused
multiply-adds (machine_peaks.cpp, which needs a C++ compiler).
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import (
    MultiScaleDeformableAttention,
)

from vastdet.layers import extension_info, ms_deform_attn
from vastdet.layers.build import find_compiler

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


# Freed blocks of this size go back to the system at once.
MEMORY_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
CASES = ("encoder forward", "encoder forward+backward", "decoder forward", "encoder forward bf16")


def compare(name: str, repeats: int, clock: Callable[[], float]) -> None:
    """Time both in turn and print a row of the table."""
    runs = {"ours": case(name, ours), "theirs": case(name, theirs)}
    times: dict[str, list[float]] = {key: [] for key in runs}
    with torch.set_grad_enabled("backward" in name):
        for repeat in range(repeats + 2):
            for key, run in runs.items():
                start = clock()
                run()
                if repeat >= 2:
                    times[key].append(clock() - start)
    ratios = [other / mine for other, mine in zip(times["theirs"], times["ours"], strict=True)]
    columns = [spread([1e3 * t for t in times[key]]) for key in ("theirs", "ours")]
    print(f"| {name} | {' | '.join(columns)} | {spread(ratios)} |", flush=True)


def spread(numbers: list[float]) -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = statistics.quantiles(numbers, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def memory(name: str, function: Callable[..., Tensor]) -> float:
    """MB by which one run raises the process's peak.

    The caller sets MEMORY_ENVIRONMENT: else memory that the inputs once took would be used again
    and not be counted.
    """
    case("decoder forward+backward", function)()  # loads what the first call of all loads
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


def machine(threads: int) -> tuple[float, float]:
    """GB/s of a triad and GFLOP/s of fused multiply-adds of this machine."""
    source = Path(__file__).with_name("machine_peaks.cpp")
    flags = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-pthread")
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/machine_peaks"
        subprocess.run([find_compiler(), *flags, str(source), "-o", program], check=True)
        command = [program, str(threads)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    bandwidth, arithmetic = map(float, result.stdout.split())
    return bandwidth, arithmetic


def share_of_machine(repeats: int, threads: int) -> None:
    """Print what part of the machine's speed the encoder's forward pass reaches."""
    torch.set_num_threads(threads)
    bandwidth, arithmetic = machine(threads)
    given = arguments(None)
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            output = ours(*given)
            times.append(time.perf_counter() - start)
    best = min(times)
    corners = 4 * NUM_CELLS * HEADS * CHANNELS * len(LEVELS) * POINTS
    moved = given[0].nbytes + given[3].nbytes + given[4].nbytes + output.nbytes
    row = (
        *(threads, 1e3 * best),
        *(2 * corners / best / 1e9, arithmetic, 2 * corners / best / 1e9 / arithmetic),
        *(moved / best / 1e9, bandwidth, moved / best / 1e9 / bandwidth),
        4 * corners / best / 1e9,
    )
    print(
        "| {} | {:.1f} | {:.1f} of {:.1f} ({:.0%}) | {:.2f} of {:.1f} ({:.0%}) | {:.1f} |".format(
            *row
        )
    )


def print_memory() -> None:
    """Print the extra memory of both, each in a process of its own."""
    print("\n| extra memory, MB | transformers | vastdet | share |\n|---|---|---|---|")
    for name in CASES[:2]:
        other, mine = (
            float(
                subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, "--memory", name, whose],
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, **MEMORY_ENVIRONMENT},
                ).stdout.split()[-1]
            )
            for whose in ("theirs", "ours")
        )
        print(f"| {name} | {other:.0f} | {mine:.0f} | 1/{other / mine:.0f} |", flush=True)


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--processor-time", action="store_true", help="in the first table; of all threads together"
    )
    parser.add_argument("--memory", nargs=2, help="internal: measure one case in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        name, whose = options.memory
        print(memory(name, ours if whose == "ours" else theirs))
        return
    clock = time.process_time if options.processor_time else time.perf_counter
    print(f"{extension_info().cpu_variant}, {options.threads} threads, torch {torch.__version__}")
    print("| case | transformers, ms | vastdet, ms | ratio |\n|---|---|---|---|")
    for name in CASES:
        compare(name, options.repeats, clock)
    print_memory()
    print("\n| threads | best, ms | GFLOP/s | GB/s that must move | GB/s of all reads |")
    print("|---|---|---|---|---|")
    for threads in range(1, options.threads + 1):
        share_of_machine(options.repeats, threads)


if __name__ == "__main__":
    main()
