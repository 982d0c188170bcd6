# SPDX-License-Identifier: Apache-2.0
"""Measures what `vocabulary_plan` predicts: processor time and memory of passes that run."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

from vastdet.engine.benchmarking import measure_memory
from vastdet.engine.vocabulary_models import make_pass, model_size, with_categories
from vastdet.engine.vocabulary_plan import Line, VocabularyPlan

TIMED_CALLS = 3
# A product of the shape that 1,024 categories of 768 channels have, and a copy larger than a cache.
PRODUCT = (1024, 768, 768)
COPIED = 1 << 24


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second of processor time, at 32-bit floats."""

    flops: float
    num_bytes: float

    @classmethod
    def measure(cls) -> "Rates":
        """By a product of matrices, and by a copy, whose bytes are read and written."""
        rows, inner, columns = PRODUCT
        left, right = torch.rand(rows, inner), torch.rand(inner, columns)
        source = torch.rand(COPIED)
        target = torch.empty_like(source)
        product = processor_seconds(lambda: left @ right, 20)
        copy = processor_seconds(lambda: target.copy_(source), 10)
        return cls(2 * rows * inner * columns / product, 8 * COPIED / copy)

    def seconds_slope(self, plan: VocabularyPlan) -> float:
        """Seconds that one more category takes: its products, and then its memory traffic."""
        return plan.num_flops.slope / self.flops + plan.bytes_moved.slope / self.num_bytes


@dataclass(frozen=True)
class Measurement:
    """What a pass over so many categories took.

    Attributes:
        categories: how many.
        memory: bytes: those of the weights, and what the process grew by in two calls.
        seconds: of processor time of a later call, the median of `TIMED_CALLS`.
    """

    categories: int
    memory: int
    seconds: float


def processor_seconds(function: Callable[[], object], num_calls: int = TIMED_CALLS) -> float:
    """The median processor time of some calls, after one that is not counted."""
    function()
    seconds = []
    for _ in range(num_calls):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def measure(
    cfg: CfgNode, task: str, image_size: tuple[int, int], categories: Sequence[int]
) -> list[Measurement]:
    """Run a config's model with numbers of made-up categories on the CPU.

    Raises:
        ValueError: fewer than two numbers, or the system does not tell a process's peak memory.
    """
    if len(set(categories)) < 2:
        raise ValueError(
            f"a slope needs two numbers of categories to be measured, got {list(categories)}"
        )
    return [measure_once(cfg, task, image_size, number) for number in categories]


def measure_once(
    cfg: CfgNode, task: str, image_size: tuple[int, int], categories: int
) -> Measurement:
    """Run one model."""
    cfg = with_categories(cfg, categories)
    _, run = make_pass(cfg, task, image_size)

    def two_calls() -> None:
        run()
        run()

    _, growth = measure_memory(two_calls, "cpu")
    if growth is None:
        raise ValueError("this system does not tell the peak memory of a process; leave --measure")
    return Measurement(categories, model_size(cfg).num_bytes + growth, processor_seconds(run))


def measured_slopes(measurements: Sequence[Measurement]) -> tuple[float, float]:
    """Bytes and seconds a category, between the fewest and the most."""
    first = min(measurements, key=lambda x: x.categories)
    last = max(measurements, key=lambda x: x.categories)
    categories = (first.categories, last.categories)
    return (
        Line.through(categories, (first.memory, last.memory)).slope,
        Line.through(categories, (first.seconds, last.seconds)).slope,
    )
