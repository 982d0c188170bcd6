# SPDX-License-Identifier: Apache-2.0
"""Times callables side by side: interleaved rounds, ratios with spread, peak memory.

A machine's speed drifts with its temperature and its other work. So every round runs each callable
once, in an order that rotates from round to round, and a ratio is taken within a round, where the
drift is common to both sides. Ratios carry over to other machines of the kind; seconds do not.
"""

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

MIN_SECONDS = 0.005
MAX_REPEATS = 10_000


@dataclass(frozen=True)
class Spread:
    """Least value, quartiles and greatest value of a sample."""

    low: float
    lower: float
    median: float
    upper: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one or more values."""
        if len(values) == 1:
            return cls(*([values[0]] * 5))
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(min(values), lower, median, upper, max(values))


@dataclass(frozen=True)
class Timing:
    """What was measured of one callable.

    Attributes:
        seconds: seconds a call, one number a round.
        ratio: seconds over those of the first callable in the same round.
        peak_memory: bytes; on CUDA the allocator's peak, else the greatest resident size of the
            process during a call. None where the system does not tell.
        memory_growth: bytes of that peak above what was in use just before the call.
    """

    name: str
    seconds: tuple[float, ...]
    ratio: Spread
    peak_memory: int | None
    memory_growth: int | None

    @property
    def spread(self) -> Spread:
        """Seconds a call."""
        return Spread.of(self.seconds)


@dataclass(frozen=True)
class Comparison:
    """Timings in the order given; ratios are against the first."""

    timings: tuple[Timing, ...]
    rounds: int
    items_per_call: int

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON."""
        rows = []
        for timing in self.timings:
            rows.append(
                {
                    "name": timing.name,
                    "ratio_to_first": vars(timing.ratio),
                    "seconds_per_call": vars(timing.spread),
                    "items_per_second": self.items_per_call / timing.spread.median,
                    "peak_memory_bytes": timing.peak_memory,
                    "memory_growth_bytes": timing.memory_growth,
                    "seconds": list(timing.seconds),
                }
            )
        return {"rounds": self.rounds, "items_per_call": self.items_per_call, "results": rows}

    def as_markdown(self, item: str = "calls") -> str:
        """A table: ratio (median, quartiles, range), throughput in `item`s a second, memory."""
        rows = [
            [
                timing.name,
                f"{timing.ratio.median:.3f}",
                f"{timing.ratio.lower:.3f} to {timing.ratio.upper:.3f}",
                f"{timing.ratio.low:.3f} to {timing.ratio.high:.3f}",
                f"{self.items_per_call / timing.spread.median:.4g}",
                megabytes(timing.peak_memory),
                megabytes(timing.memory_growth),
            ]
            for timing in self.timings
        ]
        headers = ["", "time ratio", "quartiles", "range", f"{item}/s", "peak MB", "growth MB"]
        align = ("left", *["right"] * 6)
        return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def megabytes(size: int | None) -> str:
    """Bytes in MB, or "unknown"."""
    return "unknown" if size is None else f"{size / 1e6:.0f}"


def compare(
    callables: Mapping[str, Callable[[], object]],
    rounds: int = 20,
    warmup: int = 3,
    *,
    items_per_call: int = 1,
    device: str = "cpu",
    progress: bool = False,
) -> Comparison:
    """Time callables against the first of them, in interleaved rounds.

    A callable that takes less than 5 ms is repeated within a round until it takes as long, and
    the mean is noted. Garbage is collected between, not during, calls. Memory is taken in one
    more call of each, which is not timed.

    Args:
        callables: name -> function without arguments.
        rounds: timed rounds, at least 1.
        warmup: untimed rounds before them; without any, short calls are not repeated.
        items_per_call: for the throughput, for example the images of a batch.
        device: "cuda" or "cuda:N" waits for the device around each call.
        progress: show a progress bar.

    Raises:
        ValueError: there is nothing to time, or `rounds` or `warmup` is too small.
    """
    if not callables:
        raise ValueError("there is nothing to time: give at least one callable")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be at least 1 and warmup at least 0: {rounds}, {warmup}")
    names = list(callables)
    repeats = dict.fromkeys(names, 1)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with old_objects_set_aside():
        numbers = range(warmup + rounds)
        for number in tqdm(numbers, unit="round", disable=None if progress else True):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                elapsed = time_once(callables[name], repeats[name], device)
                if number < warmup:
                    wanted = round(MIN_SECONDS / max(elapsed, 1e-9) + 0.5)
                    repeats[name] = min(max(wanted, 1), MAX_REPEATS)
                else:
                    seconds[name].append(elapsed)
    first = seconds[names[0]]
    timings = []
    for name in names:
        peak, growth = measure_memory(callables[name], device)
        ratios = [own / base for own, base in zip(seconds[name], first, strict=True)]
        timings.append(Timing(name, tuple(seconds[name]), Spread.of(ratios), peak, growth))
    return Comparison(tuple(timings), rounds, items_per_call)


@contextmanager
def old_objects_set_aside() -> Iterator[None]:
    """Spare the garbage collector the objects of today, which make each collection slow."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def time_once(function: Callable[[], object], repeats: int, device: str) -> float:
    """Mean seconds of `repeats` calls, with no garbage collection meanwhile."""
    gc.collect()
    gc.disable()
    try:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        synchronize(device)
        return (time.perf_counter() - start) / repeats
    finally:
        gc.enable()


def synchronize(device: str) -> None:
    """Wait for a CUDA device; nothing to do for the CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measure_memory(function: Callable[[], object], device: str) -> tuple[int | None, int | None]:
    """Peak bytes during one call, and their growth over the bytes in use before it."""
    gc.collect()
    if device.startswith("cuda"):
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        return peak, peak - before
    release_free_memory()
    if not reset_peak_resident():
        function()
        return None, None
    resident = resident_bytes("VmRSS")
    function()
    peak = resident_bytes("VmHWM")
    return peak, peak - resident


def reset_peak_resident() -> bool:
    """Set Linux's peak resident size (VmHWM) of this process to its present size, if it lets us."""
    try:
        # 5: reset the peak resident set size (Linux, proc(5), /proc/pid/clear_refs).
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_bytes(key: str) -> int:
    """VmRSS (present) or VmHWM (peak) of this process on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def release_free_memory() -> None:
    """Have glibc give free memory back, so that what a callable needs shows as growth."""
    if os.name == "posix":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
