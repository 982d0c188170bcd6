# SPDX-License-Identifier: Apache-2.0
"""What was selected for a picture, beside its labels."""

from pathlib import Path

import numpy as np
import pytest

from vastdet.data import category_space
from vastdet.evaluation.ground_truth import ground_truth_of_dataset
from vastdet.evaluation.selected import Selection, selection_scores, write_selection
from vastdet.report.scenes import draw_selection
from vastdet.report.selection import ABOVE, ABSENT, ALL, PRESENT, Selections
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
    assert [c.state for c in picture.shown] == [ABOVE, PRESENT, ABSENT]
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
