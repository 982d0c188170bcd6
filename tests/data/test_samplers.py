# SPDX-License-Identifier: Apache-2.0
"""Samplers that look at categories, on arrays and on lists of records."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import RepeatFactorTrainingSampler
from tests.data.test_record_table import make_document, make_table

from vastdet.data import build_train_loader, register_coco
from vastdet.data.record_table import RecordTable
from vastdet.data.records import load_training_records
from vastdet.data.samplers import (
    SAMPLERS,
    BatchSchedule,
    ClassAwareTrainingSampler,
    category_occurrences,
    repeat_factors,
)

ARRAYS, DICTS = "samplers_arrays", "samplers_dicts"


@pytest.fixture
def both(tmp_path: Path, cfg: CfgNode) -> Iterator[CfgNode]:
    """One dataset under two names: by our reader, and by a loader that returns a list."""
    (tmp_path / "images").mkdir()
    path = tmp_path / "train.json"
    path.write_text(json.dumps(make_document(3, odd=False)))
    register_coco(ARRAYS, path, tmp_path / "images")
    records = DatasetCatalog.get(ARRAYS)
    assert isinstance(records, list)
    DatasetCatalog.register(DICTS, lambda: records)
    MetadataCatalog.get(DICTS).thing_classes = MetadataCatalog.get(ARRAYS).thing_classes
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.6
    yield cfg
    for name in (ARRAYS, DICTS):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def batches(cfg: CfgNode, name: str, count: int, **options: Any) -> list[Any]:
    cfg.DATASETS.TRAIN = (name,)
    loader = build_train_loader(cfg, seed=5, mapper=lambda record: record, **options)
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_arrays_and_dicts_give_the_same_batches(both: CfgNode, sampler: str, grouped: bool) -> None:
    both.DATALOADER.SAMPLER_TRAIN = sampler
    both.DATALOADER.ASPECT_RATIO_GROUPING = grouped
    both.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    expected = batches(both, DICTS, 30)
    assert batches(both, ARRAYS, 30) == expected
    assert batches(both, ARRAYS, 11, start_batch=19) == expected[19:]
    both.DATALOADER.NUM_WORKERS = 2
    assert batches(both, ARRAYS, 30) == expected


@pytest.mark.parametrize("filter_empty", [False, True])
def test_arrays_and_dicts_are_filtered_alike(both: CfgNode, filter_empty: bool) -> None:
    both.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    found = {}
    for name in (ARRAYS, DICTS):
        both.DATASETS.TRAIN = (name, name)
        found[name] = load_training_records(both)
    assert isinstance(found[ARRAYS], RecordTable)
    assert list(found[ARRAYS]) == list(found[DICTS])
    assert (len(found[DICTS]) == 24) is (not filter_empty)


@pytest.mark.parametrize("dataset", [ARRAYS, DICTS])
def test_training_says_how_many_boxes_there_are(
    dataset: str, both: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    both.DATASETS.TRAIN = (dataset,)
    with caplog.at_level("INFO", logger="vastdet.data.records"):
        table = load_training_records(both)
    boxes = [a for record in table for a in record["annotations"] if not a["iscrowd"]]
    (name, count), *_ = Counter(str(a["category_id"]) for a in boxes).most_common()
    assert f"{len(table)} images, {len(boxes)} boxes; 5 of 5 categories" in caplog.text
    assert f"Most: {name} ({count})" in caplog.text


def test_no_box_to_learn_from(tmp_path: Path, cfg: CfgNode, both: CfgNode) -> None:
    document = make_document(3, odd=False)
    document["annotations"] = []
    (tmp_path / "train.json").write_text(json.dumps(document))
    cfg.DATASETS.TRAIN = (ARRAYS,)
    with pytest.raises(ValueError, match="no usable record: none of 12 images has a box"):
        load_training_records(cfg)


@pytest.mark.parametrize("square_root", [False, True])
@pytest.mark.parametrize("threshold", [0.001, 0.3, 0.9])
def test_repeat_factors_are_detectron2s(threshold: float, square_root: bool) -> None:
    table = make_table(make_document(0, odd=True))
    expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        list(table), threshold, sqrt=square_root
    )
    for records in (table, list(table)):
        assert torch.equal(repeat_factors(records, threshold, square_root=square_root), expected)
    assert (expected > 1).any() == (threshold > 0.3)


@pytest.mark.parametrize("with_crowds", [False, True])
def test_occurrences_are_those_of_a_loop(with_crowds: bool) -> None:
    table = make_table(make_document(1, odd=False))
    expected = {
        (annotation["category_id"], index)
        for index, record in enumerate(table)
        for annotation in record["annotations"]
        if with_crowds or not annotation["iscrowd"]
    }
    for records in (table, list(table)):
        image, category = category_occurrences(records, with_crowds=with_crowds)
        found = list(zip(category.tolist(), image.tolist(), strict=True))
        assert found == sorted(expected)


def class_aware_records() -> list[dict[str, Any]]:
    """Ten records: 1 shows category 0, 3 show category 2, 6 show category 7; one is empty."""
    shown = [[0], [2], [2, 7, 7], [2], [7], [7], [7], [7], [7], []]
    return [{"annotations": [{"category_id": k} for k in categories]} for categories in shown]


def test_each_round_draws_each_category_once() -> None:
    sampler = ClassAwareTrainingSampler(class_aware_records())
    assert sampler.categories.tolist() == [0, 2, 7]
    pools = [{0}, {1, 2, 3}, {2, 4, 5, 6, 7, 8}]
    orders = set()
    for drawn in map(np.ndarray.tolist, itertools.islice(sampler.rounds(1), 60)):
        # Some order of the three draws takes one record from each category.
        matching = [
            order
            for order in itertools.permutations(range(3))
            if all(drawn[place] in pools[k] for place, k in enumerate(order))
        ]
        assert matching
        orders.add(matching[0])
    assert len(orders) == 6
    assert 9 not in set(itertools.islice(sampler.indices(1), 1000))


def test_each_category_shows_its_records_equally_often() -> None:
    sampler = ClassAwareTrainingSampler(class_aware_records())
    counts = Counter(itertools.islice(sampler.indices(7), 3 * 600))
    # 600 rounds: record 0 in each, a third for those of category 2, a sixth for those of 7.
    assert counts == {0: 600, 1: 200, 3: 200, 2: 300, **dict.fromkeys(range(4, 9), 100)}


def test_rounds_follow_the_definition() -> None:
    """By brute force: a shuffled deck of records for each category, dealt one a round."""
    records = class_aware_records()
    sampler = ClassAwareTrainingSampler(records)
    decks = {
        k: [n for n, r in enumerate(records) if k in {a["category_id"] for a in r["annotations"]}]
        for k in (0, 2, 7)
    }
    dealt: dict[int, list[int]] = {k: [] for k in decks}
    for number, drawn in enumerate(itertools.islice(sampler.rounds(3), 12)):
        for k, deck in decks.items():
            if not dealt[k]:
                cycle = number // len(deck)
                shuffled = np.random.default_rng((3, 1, k, cycle)).permutation(len(deck))
                dealt[k] = [deck[card] for card in shuffled]
        hand = [dealt[k].pop(0) for k in sorted(decks)]
        order = np.random.default_rng((3, 0, number)).permutation(3)
        assert drawn.tolist() == [hand[k] for k in order]


def test_uniform_over_categories_where_images_are_not() -> None:
    rng = np.random.default_rng(0)
    num_images = np.ceil(200 / np.arange(1, 41) ** 1.2).astype(int)
    records = [
        {"annotations": [{"category_id": k}]} for k, n in enumerate(num_images) for _ in range(n)
    ]
    records = [records[k] for k in rng.permutation(len(records))]
    stream = ClassAwareTrainingSampler(records).indices(0)
    shown = Counter(
        records[index]["annotations"][0]["category_id"]
        for index in itertools.islice(stream, 40 * 25)
    )
    assert set(shown.values()) == {25}
    assert len(shown) == 40


def test_class_aware_stream_depends_on_the_seed_alone() -> None:
    records = class_aware_records()
    first, again, other = (
        list(itertools.islice(ClassAwareTrainingSampler(records).indices(seed), 90))
        for seed in (4, 4, 5)
    )
    assert first == again != other
    sampler = ClassAwareTrainingSampler(records)
    for number in (3, 4, 5, 13, 29):
        drawn = next(sampler.rounds(4, number)).tolist()
        assert drawn == first[3 * number : 3 * number + 3]


def test_class_aware_processes_share_one_stream() -> None:
    sampler = ClassAwareTrainingSampler(class_aware_records())
    ranks = [
        BatchSchedule(images_per_step=6, rank=rank, world_size=3).batches(sampler.indices(2))
        for rank in range(3)
    ]
    drawn = [draw for _ in range(10) for rank in ranks for draw in next(rank)]
    assert drawn == list(enumerate(itertools.islice(sampler.indices(2), 60)))


def test_class_aware_needs_boxes() -> None:
    records = [{"annotations": [{"category_id": 1, "iscrowd": 1}]}, {"annotations": []}]
    with pytest.raises(ValueError, match=r"none of 2 records has a box.*TrainingSampler"):
        ClassAwareTrainingSampler(records)


def test_repeat_factor_of_a_rare_category() -> None:
    records = [{"annotations": [{"category_id": int(k == 0)}]} for k in range(100)]
    factors = repeat_factors([*records, {"annotations": []}], 0.1)
    assert factors[0] == pytest.approx(math.sqrt(0.1 * 101))
    assert (factors[1:] == 1).all()
