# SPDX-License-Identifier: Apache-2.0
"""Which record each process sees in which batch, as a pure function of seed and batch number.

Words used here: a *position* numbers the draws of the endless stream of record indices, from 0.
A *step* is one optimiser step on `images_per_step` positions. Each step is cut into
`accumulation_steps` global batches, and each of those into one *batch* a process.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

Draw = tuple[int, int]
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")


def build_index_stream(
    cfg: CfgNode, records: Sequence[dict[str, Any]]
) -> Callable[[int], Iterator[int]]:
    """Choose the sampler of `cfg.DATALOADER.SAMPLER_TRAIN`.

    Returns a function seed -> endless iterator of record indices in [0, len(records)), the same
    in every process. Raises ValueError for a sampler that is not one of `SAMPLERS`.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    size = len(records)
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(size, seed=seed)._infinite_indices()
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        return lambda seed: RandomSubsetTrainingSampler(
            size, ratio, seed_shuffle=seed, seed_subset=seed
        )._infinite_indices()
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)._infinite_indices()
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; expected one of {', '.join(SAMPLERS)}."
    )


def aspect_ratio_groups(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """The group of each record: 0 for landscape (width > height), 1 for the rest.

    Returns an int8 array of len(records). Raises ValueError when a record lacks its size.
    """
    try:
        return np.array([record["width"] <= record["height"] for record in records], dtype=np.int8)
    except KeyError as error:
        raise ValueError(
            f"A record has no {error.args[0]!r}, which grouping by aspect ratio needs. Add the "
            "image sizes to the annotations or set DATALOADER.ASPECT_RATIO_GROUPING False."
        ) from error


class BatchSchedule:
    """Cuts a stream of record indices into the batches of one process.

    A step holds records of one group only, so that a batch needs little padding. Groups are formed
    over whole steps: the images of a step depend neither on the number of processes nor on the
    number of accumulation steps, and 2 processes train on what 1 process would.
    """

    def __init__(
        self,
        *,
        images_per_step: int,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        groups: np.ndarray | None = None,
    ) -> None:
        """`groups`: group id of each record, or None for no grouping."""
        shares = world_size * accumulation_steps
        if accumulation_steps < 1 or images_per_step < 1 or images_per_step % shares:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {images_per_step}, which cannot be shared equally by "
                f"{world_size} processes x {accumulation_steps} accumulation steps "
                f"(SOLVER.ACCUMULATION_STEPS); use a multiple of {max(shares, 1)}."
            )
        self.images_per_step = images_per_step
        self.accumulation_steps = accumulation_steps
        self.rank = rank
        self.world_size = world_size
        self.groups = groups

    def batches(self, indices: Iterator[int], start_batch: int = 0) -> Iterator[list[Draw]]:
        """Yield the draws (position, record index) of each batch of this process, endlessly.

        `start_batch` counts batches of one process; what comes before is skipped without loading.
        """
        start_step, start_part = divmod(start_batch, self.accumulation_steps)
        size = self.images_per_step // (self.accumulation_steps * self.world_size)
        for step in self._steps(indices, start_step):
            for part in range(start_part, self.accumulation_steps):
                first = (part * self.world_size + self.rank) * size
                yield step[first : first + size]
            start_part = 0

    def _steps(self, indices: Iterator[int], start: int) -> Iterator[list[Draw]]:
        draws: Iterator[Draw] = enumerate(indices)
        if self.groups is None:
            draws = itertools.islice(draws, start * self.images_per_step, None)
            while True:
                yield list(itertools.islice(draws, self.images_per_step))
        waiting: dict[int, list[Draw]] = {int(group): [] for group in np.unique(self.groups)}
        group_of = self.groups.tolist()
        for position, index in draws:
            group = waiting[group_of[index]]
            group.append((position, index))
            if len(group) == self.images_per_step:
                if start > 0:
                    start -= 1
                else:
                    yield group.copy()
                group.clear()
