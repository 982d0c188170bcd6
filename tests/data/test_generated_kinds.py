# SPDX-License-Identifier: Apache-2.0
"""Generated sets in which shapes are categories above others."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from vastdet.data import category_space
from vastdet.data.generated import KindsSplit, generated_categories
from vastdet.evaluation.ground_truth import ground_truth_of_dataset


@pytest.mark.parametrize("num_categories", [50, 1_000, 5_000, 13_000])
def test_every_category_below_a_shape_is_of_it(num_categories: int) -> None:
    split = KindsSplit(num_categories, "train")
    space = split.category_space()
    assert len(space) == num_categories
    num_all, num_own = split.sizes
    compositions = generated_categories(num_all).compositions
    assert list(space.names[:num_own]) == [c.name for c in compositions[:num_own]]
    assert space.hierarchy is not None
    graph = space.hierarchy.contracted()
    pairs = {(int(parent), int(child)) for parent, child in graph.edges}
    expected = {
        (space.names.index(c.shape, num_own), child)
        for child, c in enumerate(compositions[:num_own])
    }
    assert pairs == expected


def test_hidden_compositions_are_labelled_by_their_shape() -> None:
    split = KindsSplit(50, "val")
    names = split.category_space().names
    compositions = generated_categories(split.sizes[0]).compositions
    plain = split.scenes.records()
    num_hidden = 0
    for ours, theirs in zip(split.records(), plain, strict=True):
        assert ours["file_name"] == theirs["file_name"]
        for a, b in zip(ours["annotations"], theirs["annotations"], strict=True):
            composition = compositions[b["category_id"]]
            is_hidden = composition.name not in names
            num_hidden += is_hidden
            assert names[a["category_id"]] == (composition.shape if is_hidden else composition.name)
            assert a["bbox"] == b["bbox"]
    assert num_hidden > 100
    assert min(max(a["bbox"][2:]) for r in plain for a in r["annotations"]) >= 24


def test_registered_set_is_evaluated_from_its_records() -> None:
    name = "generated_kinds_50_val"
    truth = ground_truth_of_dataset(name)
    records = DatasetCatalog.get(name)
    assert truth.num_categories == 50
    assert len(truth.category_index) == sum(len(r["annotations"]) for r in records)
    seen = np.bincount(truth.category_index, minlength=50)
    assert (seen > 0).all()
    assert set(category_space(name).frequency) <= {"r", "c", "f"}


@pytest.mark.parametrize(("count", "split"), [(49, "train"), (13_001, "val"), (100, "open_val")])
def test_other_sets_are_refused(count: int, split: str) -> None:
    with pytest.raises(ValueError, match="expected 50 to 13,000 and 'train' or 'val'"):
        KindsSplit(count, split)
