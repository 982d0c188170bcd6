# SPDX-License-Identifier: Apache-2.0
"""Batches are a function of (seed, batch number, rank, world size) and nothing else."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from vastdet.data import BrokenRecordError, build_test_loader, build_train_loader
from vastdet.data.random_state import (
    preserved_random_state,
    random_state,
    seed_generators,
    set_random_state,
)
from vastdet.data.samplers import BatchSchedule, aspect_ratio_groups

NAME = "loader_test"
NUM_RECORDS = 10


def records() -> list[dict[str, Any]]:
    """Ten records; category 1 is in one of them only, every third is portrait."""
    return [
        {
            "file_name": f"{i}.png",
            "image_id": i,
            "width": 40 if i % 3 else 30,
            "height": 30 if i % 3 else 40,
            "annotations": [{"category_id": int(i == 4), "bbox": [0, 0, 9, 9], "bbox_mode": 1}],
        }
        for i in range(NUM_RECORDS)
    ]


def mapper(record: dict[str, Any]) -> dict[str, Any]:
    """Draw from all three generators, as augmentations do."""
    draws = (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: NPY002
    return {"id": record["image_id"], "draws": draws, "width": record["width"]}


@pytest.fixture
def data_cfg(cfg: CfgNode) -> Iterator[CfgNode]:
    DatasetCatalog.register(NAME, records)
    MetadataCatalog.get(NAME).thing_classes = ["common", "rare"]
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    yield cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def batches(cfg: CfgNode, count: int, **options: Any) -> list[list[dict[str, Any]]]:
    options = {"seed": 3, "mapper": mapper, **options}
    return list(itertools.islice(build_train_loader(cfg, **options), count))


@pytest.mark.parametrize("grouping", [False, True])
def test_workers_seed_and_start(data_cfg: CfgNode, grouping: bool) -> None:
    data_cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    whole = batches(data_cfg, 8)
    assert batches(data_cfg, 5, start_batch=3) == whole[3:]
    assert batches(data_cfg, 8, seed=4) != whole
    data_cfg.DATALOADER.NUM_WORKERS = 2
    assert batches(data_cfg, 8) == whole
    if grouping:
        assert all(len({sample["width"] for sample in batch}) == 1 for batch in whole)


def test_one_epoch_shows_each_record_once(data_cfg: CfgNode) -> None:
    data_cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    data_cfg.SOLVER.IMS_PER_BATCH = NUM_RECORDS
    first, second = batches(data_cfg, 2)
    assert {sample["id"] for sample in first} == set(range(NUM_RECORDS))
    assert [sample["id"] for sample in first] != [sample["id"] for sample in second]
    # The same image is augmented anew in the second epoch.
    draws = [sample["draws"] for batch in (first, second) for sample in batch]
    assert len(set(draws)) == 2 * NUM_RECORDS


def test_loading_leaves_the_generators_of_the_model_alone(data_cfg: CfgNode) -> None:
    seed_generators(0)
    before = mapper(records()[0])["draws"]
    seed_generators(0)
    batches(data_cfg, 3)
    assert mapper(records()[0])["draws"] == before


def test_random_state_round_trip() -> None:
    state = random_state()
    first = mapper(records()[0])["draws"]
    set_random_state(state)
    with preserved_random_state():
        assert mapper(records()[0])["draws"] == first
    assert mapper(records()[0])["draws"] == first


def test_repeat_factor_sampling_shows_rare_categories_more_often(data_cfg: CfgNode) -> None:
    data_cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    data_cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    data_cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    counts = Counter(sample["id"] for batch in batches(data_cfg, 300) for sample in batch)
    # Gupta et al., "LVIS", 2019, appendix B.2: sqrt(0.9 / 0.1) = 3 for the rare record.
    others = np.mean([counts[i] for i in range(NUM_RECORDS) if i != 4])
    assert counts[4] / others == pytest.approx(3.0, rel=0.05)
    assert batches(data_cfg, 3, start_batch=4) == batches(data_cfg, 7)[4:]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_schedule_shares_the_same_steps(world_size: int, accumulation: int, grouped: bool) -> None:
    groups = np.array([0, 1, 1, 0, 0, 1, 0]) if grouped else None
    stream = list(np.random.default_rng(0).integers(0, 7, 400))

    def draws(rank: int, world: int, parts: int) -> Iterator[list[tuple[int, int]]]:
        schedule = BatchSchedule(
            images_per_step=8,
            accumulation_steps=parts,
            rank=rank,
            world_size=world,
            groups=groups,
        )
        return schedule.batches(iter(stream))

    ranks = [draws(rank, world_size, accumulation) for rank in range(world_size)]
    for step in itertools.islice(draws(0, 1, 1), 20):
        shared = [next(rank) for _ in range(accumulation) for rank in ranks]
        assert list(itertools.chain(*shared)) == step


def test_schedule_agrees_with_a_brute_force_count() -> None:
    schedule = BatchSchedule(images_per_step=6, accumulation_steps=3, rank=1, world_size=2)
    found = list(itertools.islice(schedule.batches(itertools.count(100), start_batch=4), 3))
    # One draw a batch: batch 4 is part 1 of step 1, where rank 1 has the fourth position.
    assert found == [[(9, 109)], [(11, 111)], [(13, 113)]]


@pytest.mark.parametrize(("size", "parts", "world"), [(4, 1, 3), (6, 4, 1), (4, 0, 1), (0, 1, 1)])
def test_batch_size_that_cannot_be_shared(size: int, parts: int, world: int) -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH"):
        BatchSchedule(images_per_step=size, accumulation_steps=parts, world_size=world)


def test_grouping_needs_sizes() -> None:
    with pytest.raises(ValueError, match="ASPECT_RATIO_GROUPING False"):
        aspect_ratio_groups([{"width": 3}])


def breaking(*broken_ids: int) -> Any:
    def broken_mapper(record: dict[str, Any]) -> dict[str, Any]:
        if record["image_id"] in broken_ids:
            raise BrokenRecordError(f"{record['file_name']} is truncated")
        return mapper(record)

    return broken_mapper


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_record_is_replaced_and_reported(data_cfg: CfgNode, num_workers: int) -> None:
    data_cfg.DATALOADER.NUM_WORKERS = num_workers
    data_cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    loader = build_train_loader(data_cfg, seed=3, mapper=breaking(5))
    found = list(itertools.islice(loader, 10))
    assert all(len(batch) == 4 for batch in found)
    assert all(sample["id"] != 5 for batch in found for sample in batch)
    assert loader.report() == "  5.png: 5.png is truncated"
    # The replacement is a function of the seed, and unbroken neighbours stay as they were.
    assert found == batches(data_cfg, 10, mapper=breaking(5))
    clean = batches(data_cfg, 10)
    kept = [(a, b) for x, y in zip(found, clean, strict=True) for a, b in zip(x, y, strict=True)]
    assert {b["id"] for a, b in kept if a != b} == {5}


def test_broken_record_may_stop_the_run(data_cfg: CfgNode) -> None:
    data_cfg.DATALOADER.BROKEN_RECORDS = "raise"
    with pytest.raises(BrokenRecordError, match=r"5\.png is truncated"):
        batches(data_cfg, 10, mapper=breaking(5))
    data_cfg.DATALOADER.BROKEN_RECORDS = "ignore"
    with pytest.raises(ValueError, match="'skip' or 'raise'"):
        batches(data_cfg, 1)


def test_too_many_broken_records_stop_the_run(data_cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="2 of 10 training records are broken"):
        batches(data_cfg, 20, mapper=breaking(5, 6))
    with pytest.raises(BrokenRecordError, match="in a row"):
        batches(data_cfg, 1, mapper=breaking(*range(NUM_RECORDS)))


def test_unknown_sampler_and_empty_dataset(data_cfg: CfgNode) -> None:
    data_cfg.DATALOADER.SAMPLER_TRAIN = "NoSuchSampler"
    with pytest.raises(ValueError, match=r"SAMPLER_TRAIN.*RepeatFactorTrainingSampler"):
        batches(data_cfg, 1)
    data_cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        batches(data_cfg, 1)
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, list)
    data_cfg.DATASETS.TRAIN = (NAME,)
    with pytest.raises(ValueError, match="no usable record"):
        batches(data_cfg, 1)


def test_test_loader_shows_each_record_once(data_cfg: CfgNode) -> None:
    loader = build_test_loader(data_cfg, NAME, mapper=mapper)
    assert [sample["id"] for batch in loader for sample in batch] == list(range(NUM_RECORDS))
