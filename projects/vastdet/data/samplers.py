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
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

from vastdet.data.record_table import RecordTable

Draw = tuple[int, int]
SAMPLERS = (
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "ClassAwareTrainingSampler",
    "RandomSubsetTrainingSampler",
)


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
        factors = repeat_factors(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, square_root=cfg.DATALOADER.REPEAT_SQRT
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)._infinite_indices()
    if name == "ClassAwareTrainingSampler":
        sampler = ClassAwareTrainingSampler(records)
        return sampler.indices
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; expected one of {', '.join(SAMPLERS)}."
    )


def category_occurrences(
    records: Sequence[dict[str, Any]], *, with_crowds: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which categories each record shows: P pairs, each once, sorted by category, then record.

    Returns (P,) record indices and (P,) contiguous category ids.
    """
    if isinstance(records, RecordTable):
        kept = slice(None) if with_crowds else ~records.is_crowd
        image, category = records.image_index[kept], records.categories[kept].astype(np.int64)
    else:
        shown = [
            (index, annotation["category_id"])
            for index, record in enumerate(records)
            for annotation in record.get("annotations", ())
            if with_crowds or not annotation.get("iscrowd", 0)
        ]
        image, category = np.array(shown, dtype=np.int64).reshape(-1, 2).T
    category, image = np.divmod(np.unique(category * len(records) + image), len(records))
    return image, category


def repeat_factors(
    records: Sequence[dict[str, Any]], threshold: float, *, square_root: bool = True
) -> torch.Tensor:
    """How often an epoch of `RepeatFactorTrainingSampler` shows each record, (N,) float32.

    A category in the share f of all records has r = max(1, sqrt(threshold / f)), without the
    square root where it is not asked for, and a record the greatest r of its categories (Gupta,
    Dollar, Girshick, CVPR 2019, arXiv 1908.03195, appendix B.2). Crowds count, as in Detectron2,
    whose function of the same purpose walks through the annotations of every record.
    """
    image, category = category_occurrences(records, with_crowds=True)
    factors = np.ones(len(records))
    frequency = np.bincount(category)[category] / len(records)
    ratio = threshold / frequency
    np.maximum.at(factors, image, np.sqrt(ratio) if square_root else ratio)
    return torch.tensor(factors, dtype=torch.float32)


class ClassAwareTrainingSampler:
    """Shows every category equally often: draws a category, then a record that shows it.

    After Shen, Lin and Huang, "Relay Backpropagation for Effective Learning of Deep Convolutional
    Neural Networks", ECCV 2016, section on class-aware sampling. Each round goes once through the
    categories that some record shows, in a random order; each category goes through its records in
    a random order, all of them before one returns. Crowds do not count as shown, since training
    leaves them out, and a record without annotations is never drawn.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        """Raises ValueError when no record shows a category."""
        self._records, category = category_occurrences(records, with_crowds=False)
        if not len(category):
            raise ValueError(
                f"ClassAwareTrainingSampler draws records by their categories, but none of "
                f"{len(records)} records has a box; use DATALOADER.SAMPLER_TRAIN 'TrainingSampler'"
            )
        self.categories, self._starts, self._counts = np.unique(
            category, return_index=True, return_counts=True
        )

    def rounds(self, seed: int, first: int = 0) -> Iterator[np.ndarray]:
        """The record indices of round `first` and of all that follow, in the order of drawing.

        A round has one index for each of `categories`, and is a function of the seed and of its
        number (from 0) alone.
        """
        # Each category's records lie together, like a deck of cards: shuffled when it is used up.
        decks, cycles = self._records.copy(), np.full_like(self._counts, -1)
        for number in itertools.count(first):
            new_cycles, places = np.divmod(number, self._counts)
            for k in np.flatnonzero((new_cycles != cycles) & (self._counts > 1)).tolist():
                deck = slice(self._starts[k], self._starts[k] + self._counts[k])
                generator = np.random.default_rng(
                    (seed, 1, int(self.categories[k]), int(new_cycles[k]))
                )
                decks[deck] = generator.permutation(self._records[deck])
            cycles = new_cycles
            dealt = decks[self._starts + places]
            yield np.random.default_rng((seed, 0, number)).permutation(dealt)

    def indices(self, seed: int) -> Iterator[int]:
        """The endless stream of record indices: round after round."""
        return itertools.chain.from_iterable(drawn.tolist() for drawn in self.rounds(seed))


def aspect_ratio_groups(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """The group of each record: 0 for landscape (width > height), 1 for the rest.

    Returns an int8 array of len(records). Raises ValueError when a record lacks its size.
    """
    images = records.images if isinstance(records, RecordTable) else records
    try:
        return np.array([image["width"] <= image["height"] for image in images], dtype=np.int8)
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
