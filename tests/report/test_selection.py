# SPDX-License-Identifier: Apache-2.0
"""What was selected for a picture, beside its labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vastdet.data import category_space
from vastdet.evaluation.ground_truth import ground_truth_of_dataset
from vastdet.evaluation.selected import Selection, selection_scores, write_selection
from vastdet.report.scenes import draw_selection
from vastdet.report.selection import ABSENT, ALL, ANCESTOR, PRESENT, Selections
from vastdet.vocabulary import CategorySpace

DATASET = "generated_kinds_50_val"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Selection]:
    """Random selections of all images but the first, and their file."""
    truth = ground_truth_of_dataset(DATASET)
    rng = np.random.default_rng(0)
    images = np.arange(1, len(truth.image_ids))
    chosen = np.stack([rng.permutation(50)[:20] for _ in images])
    scores = np.sort(rng.random(chosen.shape, dtype=np.float32))[:, ::-1]
    selection = Selection(images, chosen, scores)
    folder = tmp_path_factory.mktemp("selection")
    write_selection(folder, selection, truth)
    return folder / "selected_categories.npz", selection


def test_the_curve_ends_at_the_evaluators_recall(written: tuple[Path, Selection]) -> None:
    truth = ground_truth_of_dataset(DATASET)
    selections = Selections(written[0], category_space(DATASET))
    for index, image_id in enumerate(truth.image_ids):
        rows = truth.image_index == index
        selections.add(image_id, truth.category_index[rows].tolist())
    curve = selections.recall_curve()
    scores = selection_scores(truth, written[1])
    assert (curve.num_categories, curve.num_selected) == (50, 20)
    assert curve.values[ALL][-1] == pytest.approx(scores["ARC20"])
    assert curve.values[ALL] == sorted(curve.values[ALL])
    names = {"rare": "r", "common": "c", "frequent": "f"}
    for name, values in curve.values.items():
        if name != ALL:
            assert values[-1] == pytest.approx(scores[f"ARC20{names[name]}"])


def frequency_in_turn(*groups: str | None) -> CategorySpace:
    space = category_space(DATASET)
    frequency = tuple(groups[k % len(groups)] for k in range(len(space)))
    return replace(space, frequency=frequency)


def test_the_curves_are_those_of_loops(written: tuple[Path, Selection]) -> None:
    space = frequency_in_turn("r", "c", None)
    truth, rng = ground_truth_of_dataset(DATASET), np.random.default_rng(1)
    selection = written[1]
    chosen = {
        truth.image_ids[i]: row.tolist()
        for i, row in zip(selection.images, selection.categories, strict=True)
    }
    labels = {image_id: rng.integers(0, 50, rng.integers(0, 6)) for image_id in truth.image_ids}
    selections = Selections(written[0], space)
    for image_id, own in labels.items():
        selections.add(image_id, own.tolist())
    curve = selections.recall_curve()
    assert list(curve.values) == [ALL, "rare", "common"]
    for name, group in ((ALL, ""), ("rare", "r"), ("common", "c")):
        for number in range(1, 21):
            shares = []
            for image_id, own in labels.items():
                wanted = {k for k in own.tolist() if name == ALL or space.frequency[k] == group}
                found = wanted & set(chosen.get(image_id, [])[:number])
                if wanted:
                    shares.append(len(found) / len(wanted))
            expected = 100 * sum(shares) / len(shares)
            assert curve.values[name][number - 1] == pytest.approx(expected, abs=1e-9)


def test_a_group_of_all_labels_has_no_curve_of_its_own(written: tuple[Path, Selection]) -> None:
    image_id = ground_truth_of_dataset(DATASET).image_ids[1]
    for space, names in (
        (frequency_in_turn("c"), [ALL]),
        (frequency_in_turn("c", None), [ALL, "common"]),
        (frequency_in_turn(None), [ALL]),
    ):
        selections = Selections(written[0], space)
        selections.add(image_id, [0, 1, 2])
        assert list(selections.recall_curve().values) == names


def test_a_file_of_another_vocabulary_is_named(written: tuple[Path, Selection]) -> None:
    space = CategorySpace.from_names(["a", "b"])
    with pytest.raises(
        ValueError, match=r"selected_categories\.npz is of another vocabulary.*again"
    ):
        Selections(written[0], space)


def test_a_picture_tells_rank_state_and_path(written: tuple[Path, Selection]) -> None:
    truth, space = ground_truth_of_dataset(DATASET), category_space(DATASET)
    selections = Selections(written[0], space)
    chosen = written[1].categories[0].tolist()
    first, late = chosen[0], chosen[15]
    never = next(k for k in range(50) if k not in chosen)
    picture = selections.picture(truth.image_ids[1], [first, first, late, never])
    assert picture.shown[0].path[-1] == space.names[first]
    assert picture.shown[0].path[0] == "thing"
    assert picture.shown[0].state == PRESENT
    assert picture.further == [(space.names[late], 15), (space.names[never], None)]
    assert (picture.num_selected, picture.num_labelled, picture.num_found) == (20, 3, 2)
    text = draw_selection(picture)
    assert "2 of the 3 labelled categories are among the 20 selected" in text
    assert f"{space.names[late]} (rank 16), {space.names[never]} (not selected)" in text


def test_a_category_above_a_label_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    truth, space = ground_truth_of_dataset(DATASET), category_space(DATASET)
    circle, red_circle = space.names.index("circle"), space.names.index("red plain circle")
    other = space.names.index("crescent")
    one = Selection(np.array([0]), np.array([[circle, red_circle, other]]), np.full((1, 3), 0.5))
    write_selection(tmp_path, one, truth)
    selections = Selections(tmp_path / "selected_categories.npz", space)
    picture = selections.picture(truth.image_ids[0], [red_circle])
    assert [c.state for c in picture.shown] == [ANCESTOR, PRESENT, ABSENT]
    assert picture.shown[1].path == ("thing", "round shape", "circle", "red plain circle")


def test_an_image_without_selection_or_labels(written: tuple[Path, Selection]) -> None:
    truth, space = ground_truth_of_dataset(DATASET), category_space(DATASET)
    selections = Selections(written[0], space)
    empty = selections.picture(truth.image_ids[0], [4])
    assert (empty.shown, empty.further, empty.num_found) == ([], [(space.names[4], None)], 0)
    selections.add(truth.image_ids[1], [])
    assert selections.recall_curve().values == {}


def test_without_tree_or_scores_a_category_stands_alone(tmp_path: Path) -> None:
    truth = ground_truth_of_dataset(DATASET)
    space = CategorySpace.from_names([f"<{k}>" for k in range(50)])
    one = Selection(np.array([0]), np.array([[3, -1]]), np.full((1, 2), np.nan, np.float32))
    write_selection(tmp_path, one, truth)
    selections = Selections(tmp_path / "selected_categories.npz", space)
    picture = selections.picture(truth.image_ids[0], [])
    assert [c.path for c in picture.shown] == [("<3>",)]
    text = draw_selection(picture)
    assert "&lt;3&gt;" in text
    assert "score" not in text
    assert "›" not in text
