# SPDX-License-Identifier: Apache-2.0
"""Reductions of curves to numbers, and the tables made of them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from vastdet.evaluation.detections import Detections
from vastdet.evaluation.engines import accumulate
from vastdet.evaluation.ground_truth import GroundTruth, from_coco
from vastdet.evaluation.metrics import Scores, mean_percent, mean_percent_of_categories, score
from vastdet.evaluation.protocols import coco_protocols
from vastdet.evaluation.report import category_table as category_rows
from vastdet.evaluation.tables import category_table, group_table, size_table, summary_table


def scored(
    frequency: list[str | None], found: list[int], novel: list[bool] | None = None
) -> tuple[Scores, GroundTruth]:
    """One box a category in an image of its own; the categories in `found` are detected."""
    size = len(frequency)
    truth = from_coco(
        {
            "images": [{"id": k} for k in range(size)],
            "categories": [
                {
                    "id": k,
                    "name": f"c{k}",
                    **({"frequency": f} if f else {}),
                    **({"novel": novel[k]} if novel else {}),
                }
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
    assert {group: row["AP"] for group, row in scores.groups.items()} == pytest.approx(
        {"rare": 50, "common": 100, "frequent": 0}
    )
    assert scores.groups["rare"]["categories"] == 2
    assert "rare" in printed(group_table(scores, title="groups"))


def test_base_and_novel_groups() -> None:
    scores, _ = scored([None] * 4, [0, 2], [False, True, True, True])
    assert {group: row["AP"] for group, row in scores.groups.items()} == pytest.approx(
        {"base": 100, "novel": 100 / 3}
    )
    assert scores.summary["APbase"] == pytest.approx(100)
    assert scores.summary["APnovel"] == pytest.approx(100 / 3)
    assert np.isnan(scores.groups["novel"]["APs"])
    assert scored([None] * 2, [0], [False, False])[0].groups == {}


def test_means_of_categories_equal_loops() -> None:
    values = np.random.default_rng(0).random((3, 4, 6))
    values[..., 2] = -1
    values[1:, ..., 4] = -1
    means = mean_percent_of_categories(values)
    expected = [mean_percent(values[..., k]) for k in range(6)]
    np.testing.assert_allclose(means, expected, rtol=1e-12)
    assert np.isnan(means[2])


def test_no_frequency_groups() -> None:
    scores, _ = scored([None, None], [0])
    assert scores.groups == {}
    assert group_table(scores, title="groups") is None


def test_summary_table_shows_every_number_and_dashes() -> None:
    scores, truth = scored(["f"], [0])
    protocols = coco_protocols(truth)
    text = printed(summary_table(protocols, {"bbox": scores}, title="scores of a set"))
    assert "COCO box AP" in text
    assert "scores of a set" in text
    for key in scores.summary:
        assert f" {key} " in text
    assert "100.0" in text
    assert " - " in text  # nothing small


def test_long_category_tables_are_cut() -> None:
    scores, truth = scored([None] * 60, list(range(0, 60, 2)))
    text = printed(category_table(scores, truth))
    assert "(60 of 60 have ground truth; the 10 best and the 10 worst)" in text
    names = [word for word in text.split() if word.startswith("c") and word[1:].isdigit()]
    assert names == [f"c{k}" for k in [*range(0, 20, 2), *range(19, 0, -2)]]


def test_of_equal_categories_those_with_more_boxes_are_shown() -> None:
    scores, truth = scored([None] * 60, list(range(0, 60, 2)))
    boxes = np.arange(60)
    categories = replace(scores.categories, num_boxes=boxes)
    text = printed(category_table(replace(scores, categories=categories), truth))
    names = [word for word in text.split() if word.startswith("c") and word[1:].isdigit()]
    assert names == [f"c{k}" for k in [*range(58, 38, -2), *range(41, 60, 2)]]


def test_size_table() -> None:
    scores, truth = scored(["f"], [0])
    protocols = coco_protocols(truth)
    text = printed(size_table(protocols, {"bbox": scores}, title="sizes"))
    rows = {
        line.split()[1].strip(","): line.split()[-4:] for line in text.splitlines() if "│" in line
    }
    assert rows["all"][0::2] == ["100.0", "100.0"]
    assert rows["small"][0::2] == ["-", "-"]
    assert rows["medium"][0::2] == ["100.0", "100.0"]  # a box of 50 x 50


def test_category_rows_say_what_is_known_of_training() -> None:
    scores, truth = scored(["r", "f"], [0], novel=[True, False])
    header, rows = category_rows(scores.categories, truth)
    assert header[:5] == ["category_id", "name", "frequency", "novel", "ap"]
    assert rows[0][:5] == [0, "c0", "r", True, pytest.approx(100)]
    space = truth.space.with_counts(image_counts=[3, 50], instance_counts=[4, 60])
    header, rows = category_rows(scores.categories, replace(truth, space=space))
    assert header[3:6] == ["novel", "training_images", "training_boxes"]
    assert rows[1][3:6] == [False, 50, 60]
