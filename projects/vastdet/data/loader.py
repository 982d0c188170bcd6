# SPDX-License-Identifier: Apache-2.0
"""Loaders whose batches depend on (config, seed, batch number, rank, world size) and nothing else.

Detectron2's training loader draws augmentations from the generators of its worker processes, so a
resumed run, or one with another number of workers, sees other data. Here each draw seeds the
generators from (seed, position) before the mapper runs.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from vastdet.data.errors import BrokenRecordError
from vastdet.data.mapper import DetectionMapper
from vastdet.data.random_state import preserved_random_state, seed_generators
from vastdet.data.record_table import Record, RecordTable
from vastdet.data.records import load_test_records, load_training_records
from vastdet.data.samplers import BatchSchedule, Draw, aspect_ratio_groups, build_index_stream

Mapper = Callable[[Record], Record | None]
BrokenRecord = tuple[str, str]

# A handful of unlucky draws is normal with a few broken files; this many in a row is a wrong path.
MAX_DRAWS_FOR_ONE_SAMPLE = 16

logger = logging.getLogger(__name__)


class SampleDataset(Dataset):
    """Maps a draw (position, record index) to (sample, broken records met on the way)."""

    def __init__(
        self, records: Sequence[Record], mapper: Mapper, *, seed: int, raise_broken: bool
    ) -> None:
        self.records = records
        self.mapper = mapper
        self.seed = seed
        self.raise_broken = raise_broken

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> tuple[Record, list[BrokenRecord]]:
        """Map one draw; a broken record is replaced by another one drawn from the same seed."""
        position, index = draw
        broken: list[BrokenRecord] = []
        for attempt in range(MAX_DRAWS_FOR_ONE_SAMPLE):
            record = self.records[index]
            file_name = str(record.get("file_name", f"record {index}"))
            with preserved_random_state():
                seed_generators(self.seed, position, attempt)
                try:
                    sample = self.mapper(record)
                    reason = "the mapper returned nothing"
                except BrokenRecordError as error:
                    sample, reason = None, str(error).removeprefix(f"{file_name}: ")
                    if self.raise_broken:
                        raise
                # Drawn from the generator that (seed, position, attempt) seeded.
                replacement = random.randrange(len(self.records))
            if sample is not None:
                return sample, broken
            broken.append((file_name, reason))
            index = replacement
        raise BrokenRecordError(
            f"{MAX_DRAWS_FOR_ONE_SAMPLE} records in a row could not be used, the last being "
            f"{broken[-1][0]}: {broken[-1][1]}. Is the image folder of DATASETS.TRAIN right?"
        )


class TrainLoader:
    """An endless iterator of the batches (lists of mapped records) of this process."""

    def __init__(
        self,
        dataset: SampleDataset,
        index_stream: Callable[[int], Iterator[int]],
        schedule: BatchSchedule,
        *,
        start_batch: int = 0,
        num_workers: int = 0,
        max_broken_fraction: float = 1.0,
    ) -> None:
        self.dataset = dataset
        self.schedule = schedule
        self.start_batch = start_batch
        self.broken: dict[str, str] = {}
        self._index_stream = index_stream
        self._num_workers = num_workers
        self._max_broken = math.ceil(max_broken_fraction * len(dataset))
        self._batches: Iterator[list[tuple[Record, list[BrokenRecord]]]] | None = None

    def restart(self, *, seed: int, start_batch: int) -> None:
        """Continue with batch number `start_batch` of the stream of `seed`."""
        self.dataset.seed = seed
        self.start_batch = start_batch
        self._batches = None

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> list[Record]:
        """The next batch. Raises BrokenRecordError when too many records are broken."""
        if self._batches is None:
            self._batches = iter(self._new_loader())
        batch = next(self._batches)
        for _, broken in batch:
            self._count(broken)
        return [sample for sample, _ in batch]

    def _new_loader(self) -> DataLoader:
        indices = self._index_stream(self.dataset.seed)
        return DataLoader(
            self.dataset,
            batch_sampler=self.schedule.batches(indices, self.start_batch),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            # Without its own generator the loader would draw from torch's global one.
            generator=torch.Generator(),
        )

    def _count(self, broken: list[BrokenRecord]) -> None:
        for file_name, reason in broken:
            if file_name not in self.broken:
                self.broken[file_name] = reason
                logger.warning("Skipped a broken record, %s: %s", file_name, reason)
        if len(self.broken) > self._max_broken:
            raise BrokenRecordError(
                f"{len(self.broken)} of {len(self.dataset)} training records are broken, more than "
                "DATALOADER.MAX_BROKEN_FRACTION allows. Check the data with "
                "tools/check_dataset.py; the first ones:\n" + self.report(5)
            )

    def report(self, limit: int = 20) -> str:
        """A line for each of the first `limit` broken records met so far; empty if none."""
        lines = [f"  {name}: {reason}" for name, reason in list(self.broken.items())[:limit]]
        if len(self.broken) > limit:
            lines.append(f"  and {len(self.broken) - limit} more")
        return "\n".join(lines)


def build_train_loader(
    cfg: CfgNode, *, seed: int, start_batch: int = 0, mapper: Mapper | None = None
) -> TrainLoader:
    """Build the endless iterator of this process's training batches.

    Batch n of a process is a pure function of (cfg, seed, n, rank, world size). A step of
    `SOLVER.IMS_PER_BATCH` images is `SOLVER.ACCUMULATION_STEPS` batches of each process. A record
    for which the mapper raises BrokenRecordError is replaced, counted and logged, or ends the run
    (`DATALOADER.BROKEN_RECORDS`). Raises ValueError for a batch size that cannot be shared, an
    unknown sampler, or no usable record.
    """
    if cfg.DATALOADER.BROKEN_RECORDS not in ("skip", "raise"):
        raise ValueError(
            f"DATALOADER.BROKEN_RECORDS is {cfg.DATALOADER.BROKEN_RECORDS!r}; "
            "expected 'skip' or 'raise'."
        )
    records = load_training_records(cfg)
    schedule = BatchSchedule(
        images_per_step=cfg.SOLVER.IMS_PER_BATCH,
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        groups=aspect_ratio_groups(records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )
    dataset = SampleDataset(
        shared(records),
        mapper or DetectionMapper(cfg, True),
        seed=seed,
        raise_broken=cfg.DATALOADER.BROKEN_RECORDS == "raise",
    )
    return TrainLoader(
        dataset,
        build_index_stream(cfg, records),
        schedule,
        start_batch=start_batch,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        max_broken_fraction=cfg.DATALOADER.MAX_BROKEN_FRACTION,
    )


def build_test_loader(
    cfg: CfgNode, dataset_name: str, *, mapper: Mapper | None = None
) -> DataLoader:
    """Build Detectron2's test loader of one dataset: each record once, one image a batch."""
    records = load_test_records(cfg, dataset_name)
    return build_detection_test_loader(
        shared(records),
        mapper=mapper or DetectionMapper(cfg, False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def shared(records: Sequence[Record]) -> Sequence[Record] | Dataset:
    """The same records, kept so that worker processes share their memory."""
    if isinstance(records, RecordTable):
        return records.shared()
    return DatasetFromList(records, copy=False) if isinstance(records, list) else records
