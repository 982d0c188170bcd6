# SPDX-License-Identifier: Apache-2.0
"""Reductions of curves to numbers, and the tables made of them."""

import io

import numpy as np
import pytest
from rich.console import Console

from vastdet.evaluation.detections import Detections
from vastdet.evaluation.engines import accumulate
from vastdet.evaluation.ground_truth import GroundTruth, from_coco
from vastdet.evaluation.metrics import Scores, mean_percent, score
from vastdet.evaluation.tables import category_table, frequency_table, summary_table


def scored(frequency: list[str | None], found: list[int]) -> tuple[Scores, GroundTruth]:
    """One box a category in an image of its own; the categories in `found` are detected."""
    size = len(frequency)
    truth = from_coco(
        {
            "images": [{"id": k} for k in range(size)],
            "categories": [
                {"id": k, "name": f"c{k}", **({"frequency": f} if f else {})}
                for k, f in enumerate(frequency)
            ],
            "annotations": [
                {"image_id": k, "category_id": k, "bbox": [0, 0, 50, 50]} for k in range(size)
            ],
        }
    )
    index = np.array(found, dtype=np.int64)
    boxes = np.tile([0.0, 0.0, 50.0, 50.0], (len(found), 1))
    detections = Detections(index, index, boxes, np.ones(len(found)))
    return score(accumulate(truth, detections), truth, detections), truth


def printed(table) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_mean_leaves_out_absent_entries() -> None:
    assert mean_percent(np.array([[-1, 0.5], [0.25, -1]])) == pytest.approx(37.5)
    assert np.isnan(mean_percent(np.array([-1.0])))


def test_frequency_groups() -> None:
    scores, _ = scored(["r", "r", "c", "f"], [0, 2])
    assert {group: row["AP"] for group, row in scores.frequency.items()} == pytest.approx(
        {"rare": 50, "common": 100, "frequent": 0}
    )
    assert scores.frequency["rare"]["categories"] == 2
    assert "rare" in printed(frequency_table(scores))


def test_no_frequency_groups() -> None:
    scores, _ = scored([None, None], [0])
    assert scores.frequency == {}
    assert frequency_table(scores) is None


def test_summary_table_shows_every_number_and_dashes() -> None:
    scores, _ = scored(["f"], [0])
    text = printed(summary_table(scores, title="scores of a set"))
    assert "scores of a set" in text
    for key in scores.summary:
        assert f" {key} " in text
    assert "100.0" in text
    assert " - " in text  # nothing small


def test_long_category_tables_are_cut() -> None:
    scores, truth = scored([None] * 60, list(range(0, 60, 2)))
    text = printed(category_table(scores, truth))
    assert "(60 of 60 have ground truth; the best and the worst 20)" in text
    assert sum(f"c{k} " in text for k in range(60)) == 40
