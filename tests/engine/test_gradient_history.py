# SPDX-License-Identifier: Apache-2.0
"""What is kept of a training's gradients survives checkpoints and files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vastdet.data.record_table import RecordTable, training_image_counts
from vastdet.engine.gradient_history import GROUPS, GradientHistory, Subject, subject_of
from vastdet.engine.gradient_sums import CATEGORY_SUMS, DEFINITIONS, SUMS
from vastdet.layers.observed_logits import DENOISING, PARTS, PREDICTIONS, PROPOSALS
from vastdet.vocabulary import CategorySpace

SUBJECT = Subject(
    architecture="DINO",
    datasets=("toy",),
    hard_negatives=("probability", 0.1),
    names=("dot", "ring", "bar", "blob"),
    image_counts=(5, 20, 200, 0),
    frequency=("r", "c", "f", None),
)


def measured(num_steps: int = 3) -> GradientHistory:
    history = GradientHistory(SUBJECT)
    generator = torch.Generator().manual_seed(0)
    for t in range(num_steps):
        parts = torch.rand(len(PARTS), 2, len(SUMS), generator=generator).double()
        parts[PARTS.index(DENOISING)] = 0
        categories = torch.rand(2, 3, 4, generator=generator).double()
        history.append(20 * t + 19, parts, categories, torch.arange(4.0).double())
    return history


def assert_same(a: GradientHistory, b: GradientHistory) -> None:
    assert (a.subject, a.iterations) == (b.subject, b.iterations)
    for d in DEFINITIONS:
        for part in PARTS:
            for s in SUMS:
                own = a.sums(s, definition=d, part=part)
                np.testing.assert_array_equal(own, b.sums(s, definition=d, part=part))
        for s in CATEGORY_SUMS:
            own = a.category_sums(s, definition=d)
            np.testing.assert_array_equal(own, b.category_sums(s, definition=d))
            for g in GROUPS:
                own = a.group_sums(g, s, definition=d)
                np.testing.assert_array_equal(own, b.group_sums(g, s, definition=d))
    assert a.num_positives.equal(b.num_positives)


def test_groups_are_sums_of_their_categories() -> None:
    history = measured()
    for k, group in enumerate(GROUPS):
        for s in CATEGORY_SUMS:
            total = history.group_sums(group, s).sum()
            assert total == pytest.approx(history.category_sums(s)[k])
    assert history.num_positives.tolist() == [0, 3, 6, 9]
    assert history.sums("hard", part=PROPOSALS).shape == (3,)
    assert not history.sums("hard", part=DENOISING).any()


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_file_and_back(num_steps: int, tmp_path: Path) -> None:
    history = measured(num_steps)
    history.save(tmp_path / "gradients.json")
    assert_same(GradientHistory.load(tmp_path / "gradients.json"), history)


def test_file_speaks_names(tmp_path: Path) -> None:
    measured().save(tmp_path / "gradients.json")
    content = json.loads((tmp_path / "gradients.json").read_text())
    assert content["iterations"] == [19, 39, 59]
    assert set(content["parts"]) == set(PARTS) - {DENOISING}
    assert set(content["parts"][PREDICTIONS]["loss"]) == set(SUMS)
    assert content["categories"]["names"] == ["dot", "ring", "bar", "blob"]
    assert len(content["categories"]["cross_entropy"]["negative"]) == 4


def test_checkpoint_and_back_and_on() -> None:
    whole = measured(3)
    assert measured(0).state_dict() == {}
    resumed = GradientHistory(SUBJECT)
    resumed.load_state_dict(measured(2).state_dict())
    last = [whole.parts[2], whole.categories - resumed.categories]
    resumed.append(59, *last, torch.arange(4.0).double())
    assert resumed.iterations == whole.iterations
    assert resumed.sums("hard").tolist() == whole.sums("hard").tolist()
    torch.testing.assert_close(resumed.categories, whole.categories)


def test_checkpoint_of_other_data() -> None:
    other = GradientHistory(replace(SUBJECT, names=("dot",), frequency=("r",), image_counts=(1,)))
    with pytest.raises(ValueError, match="gradients are of 4 categories, the training data has 1"):
        other.load_state_dict(measured().state_dict())


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "gradients.json"
    with pytest.raises(FileNotFoundError):
        GradientHistory.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds no gradients of a training"):
        GradientHistory.load(path)
    measured().save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "version": 99}))
    with pytest.raises(ValueError, match="has version 99, this vastdet reads 1"):
        GradientHistory.load(path)
    del content["groups"]["r"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"is damaged: KeyError\('r'\); train again"):
        GradientHistory.load(path)


RECORDS = [
    {"annotations": [{"category_id": 0}, {"category_id": 0}, {"category_id": 2}]},
    {"annotations": [{"category_id": 2, "iscrowd": 1}, {"category_id": 1, "iscrowd": 0}]},
    {"annotations": []},
]


def test_image_counts_of_records_and_of_a_table() -> None:
    assert training_image_counts(RECORDS, 4).tolist() == [1, 1, 1, 0]
    table = RecordTable(
        images=[{}, {}, {}],
        starts=np.array([0, 3, 5, 5]),
        boxes=np.zeros((5, 4)),
        categories=np.array([0, 0, 2, 2, 1], dtype=np.int32),
        is_crowd=np.array([False, False, False, True, False]),
    )
    assert training_image_counts(table, 4).tolist() == [1, 1, 1, 0]


def test_subject_knows_counts_and_groups() -> None:
    space = CategorySpace.from_names(["a", "b", "c", "d"])
    known = {"architecture": "FCOS", "datasets": ["x"], "hard_negatives": ("top", 0.01)}
    subject = subject_of(space, RECORDS, **known)
    assert subject.image_counts == (1, 1, 1, 0)
    assert subject.frequency == ("r", "r", "r", None)
    stated = space.with_counts(image_counts=[500, 50, 5, 0])
    assert subject_of(stated, RECORDS, **known).frequency == ("f", "c", "r", None)
