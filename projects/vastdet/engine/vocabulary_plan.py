# SPDX-License-Identifier: Apache-2.0
"""What a detector costs by its number of categories: parameters, memory, time, and how many fit.

A model is built for a few small vocabularies and its pass is counted. Everything that is counted
grows by a straight line at each place of the pass, so that any other number follows.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from detectron2.config import CfgNode

from vastdet.engine.pass_counter import PassCounts, count_pass
from vastdet.engine.vocabulary_models import (
    PASSES,
    make_pass,
    model_size,
    shapes_pass,
    with_categories,
)

logger = logging.getLogger(__name__)

# Whole pieces of the models that score categories in pieces of 1,024; the third checks the line
# through the first two.
COUNTED = (2048, 4096, 6144)


@dataclass(frozen=True)
class Line:
    """A quantity that grows with the number of categories: `start + slope * categories`."""

    start: float
    slope: float

    @classmethod
    def through(cls, categories: tuple[int, int], values: tuple[float, float]) -> "Line":
        """The line through two points."""
        slope = (values[1] - values[0]) / (categories[1] - categories[0])
        return cls(values[0] - slope * categories[0], slope)

    def at(self, categories: int) -> float:
        """The value for a number of categories."""
        return self.start + self.slope * categories


@dataclass(frozen=True)
class VocabularyPlan:
    """What a model costs by its number of categories.

    Attributes:
        name: of the model.
        task: of `PASSES`.
        num_parameters: of the model.
        weight_bytes: of its parameters and buffers.
        num_flops: of the pass; a multiply-add counts as two.
        bytes_moved: by the operators of the pass.
        working: the most bytes that the pass holds beside the weights, at each place of it.
        from_shapes: whether the pass was counted by shapes alone; else it ran.
        deviation: how far the lines are from a third vocabulary, as a share of its memory.
    """

    name: str
    task: str
    num_parameters: Line
    weight_bytes: Line
    num_flops: Line
    bytes_moved: Line
    working: tuple[Line, ...]
    from_shapes: bool
    deviation: float = 0.0

    def memory(self, categories: int) -> float:
        """Bytes of all tensors at the peak of the pass."""
        return self.weight_bytes.at(categories) + self.working_memory(categories)

    def working_memory(self, categories: int) -> float:
        """Bytes at the peak beside the weights."""
        return max((line.at(categories) for line in self.working), default=0.0)

    def memory_slope(self, categories: int) -> float:
        """Bytes that one more category takes."""
        return self.memory(categories + 1) - self.memory(categories)

    def largest(self, num_bytes: float) -> int:
        """The most categories whose pass stays within so many bytes.

        Raises:
            ValueError: not even one category does, or the memory does not grow with their number.
        """
        if self.memory(1) > num_bytes:
            raise ValueError(
                f"{self.name} needs {self.memory(1) / 1e9:.3g} GB for one category "
                f"({self.task}), more than {num_bytes / 1e9:.3g} GB; give more memory, or a "
                "smaller image size"
            )
        low, high = 1, 2
        while self.memory(high) <= num_bytes:
            if high > 2**50:
                raise ValueError(f"the memory of {self.name} does not grow with its categories")
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.memory(middle) <= num_bytes else (low, middle)
        return low


def plan(
    cfg: CfgNode,
    name: str,
    *,
    task: str = "inference",
    image_size: tuple[int, int] = (800, 1333),
    counted: Sequence[int] = COUNTED,
) -> VocabularyPlan:
    """Count a config's model for three small vocabularies and draw the lines.

    Args:
        cfg: a model on the CPU.
        name: what to call it.
        task: of `PASSES`; training is one image a step.
        image_size: (height, width) in pixels.
        counted: three numbers of categories. Of models that score categories in pieces, multiples
            of a piece.

    Raises:
        ValueError: an unknown task, not three rising numbers, a number of parameters that is no
            straight line.
    """
    if task not in PASSES:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(PASSES)}")
    if len(counted) != 3 or list(counted) != sorted(set(counted)):
        raise ValueError(f"expected three rising numbers of categories, got {list(counted)}")
    configs = [with_categories(cfg, number) for number in counted]
    sizes = [model_size(x) for x in configs]
    two = (counted[0], counted[1])
    parameters = Line.through(two, (sizes[0].num_parameters, sizes[1].num_parameters))
    if parameters.at(counted[2]) != sizes[2].num_parameters:
        raise ValueError(
            f"{name} has {sizes[2].num_parameters:,} parameters for {counted[2]:,} categories, "
            f"where a straight line through {counted[0]:,} and {counted[1]:,} gives "
            f"{parameters.at(counted[2]):,.0f}; it cannot be planned"
        )
    counts, from_shapes = count_all(configs, task, image_size)
    places = set(counts[0].peaks) | set(counts[1].peaks)
    found = VocabularyPlan(
        name,
        task,
        parameters,
        Line.through(two, (sizes[0].num_bytes, sizes[1].num_bytes)),
        Line.through(two, (counts[0].num_flops, counts[1].num_flops)),
        Line.through(two, (counts[0].bytes_moved, counts[1].bytes_moved)),
        tuple(
            Line.through(two, (counts[0].peaks.get(x, 0), counts[1].peaks.get(x, 0)))
            for x in sorted(places)
        ),
        from_shapes,
    )
    actual = sizes[2].num_bytes + counts[2].peak
    deviation = abs(found.memory(counted[2]) - actual) / actual
    return replace(found, deviation=deviation)


def count_all(
    configs: Sequence[CfgNode], task: str, image_size: tuple[int, int]
) -> tuple[list[PassCounts], bool]:
    """The counts of each model, and whether they follow from shapes alone.

    Only the inference of set-prediction models may do without values, and of those not all: an
    operator whose result has a size that depends on values, or the matching of training, needs a
    pass that runs.
    """
    if task == "inference":
        try:
            return [count_pass(*shapes_pass(cfg, image_size)) for cfg in configs], True
        except NotImplementedError as error:
            logger.info("The pass depends on values, so it runs: %s", error)
    return [count_pass(*make_pass(cfg, task, image_size)) for cfg in configs], False
