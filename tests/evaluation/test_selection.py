# SPDX-License-Identifier: Apache-2.0
"""The best of each group, and the recall of categories, against loops."""

import numpy as np
import pytest

from vastdet.evaluation.detections import NO_DETECTIONS, Detections
from vastdet.evaluation.ground_truth import GroundTruth, from_coco
from vastdet.evaluation.selection import best_of_each, category_recall, detected_categories


def truth_of(labels: list[list[int]], num_categories: int = 9, crowd: bool = False) -> GroundTruth:
    """Images with boxes of the given categories."""
    return from_coco(
        {
            "images": [{"id": i} for i in range(len(labels))],
            "categories": [{"id": k, "name": f"c{k}"} for k in range(num_categories)],
            "annotations": [
                {"image_id": i, "category_id": k, "bbox": [0, 0, 9, 9], "iscrowd": int(crowd)}
                for i, row in enumerate(labels)
                for k in row
            ],
        }
    )


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_best_of_each_equals_loops(limit: int) -> None:
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 9, 200)
    groups[groups == 4] = 5  # an empty group
    scores = generator.random(200).round(1)
    expected = []
    for group in range(9):
        members = [i for i in range(200) if groups[i] == group]
        expected += sorted(members, key=lambda i: -scores[i])[:limit]
    assert best_of_each(groups, scores, limit).tolist() == sorted(expected)
    assert best_of_each(groups[:0], scores[:0], limit).tolist() == []


@pytest.mark.parametrize(("limit", "chunk"), [(1, 128), (3, 2), (20, 1)])
def test_detected_categories_equal_loops(monkeypatch, limit: int, chunk: int) -> None:
    monkeypatch.setattr("vastdet.evaluation.selection.CHUNK_IMAGES", chunk)
    generator = np.random.default_rng(1)
    found = Detections(
        image_index=generator.integers(0, 6, 150),
        category_index=generator.integers(0, 12, 150),
        boxes=np.zeros((150, 4)),
        scores=generator.random(150),
    )
    selected = detected_categories(found, num_images=7, limit=limit)
    for image in range(7):
        best: dict[int, float] = {}
        for i in np.flatnonzero(found.image_index == image).tolist():
            k = int(found.category_index[i])
            best[k] = max(best.get(k, 0), float(found.scores[i]))
        expected = sorted(best, key=lambda k: -best[k])[:limit]
        assert selected[image].tolist() == expected + [-1] * (limit - len(expected))
    nothing = detected_categories(NO_DETECTIONS, num_images=2, limit=3)
    assert nothing.tolist() == [[-1] * 3] * 2


def test_category_recall_by_hand() -> None:
    truth = truth_of([[1, 1, 2], [3], []])
    # A half of the first image's two categories; the third image has no label.
    assert category_recall(truth, np.array([[2, 5], [3, 4], [1, 2]])) == pytest.approx(75)
    assert category_recall(truth, np.array([[2, 1], [4, 5], [1, 2]])) == pytest.approx(50)
    assert category_recall(truth, np.full((3, 2), -1)) == 0
    assert category_recall(truth, np.zeros((3, 0), dtype=np.int64)) == 0


def test_category_recall_without_labels() -> None:
    assert np.isnan(category_recall(truth_of([[], []]), np.array([[1], [2]])))
    assert np.isnan(category_recall(truth_of([[1]], crowd=True), np.array([[1]])))


def test_category_recall_equals_loops() -> None:
    generator = np.random.default_rng(2)
    labels = [generator.integers(0, 9, generator.integers(0, 5)).tolist() for _ in range(40)]
    selected = np.stack([generator.permutation(9)[:4] for _ in range(40)])
    selected[::5, 2:] = -1
    shares = [
        len(set(row) & set(chosen)) / len(set(row))
        for row, chosen in zip(labels, selected.tolist(), strict=True)
        if row
    ]
    assert category_recall(truth_of(labels), selected) == pytest.approx(100 * np.mean(shares))


def test_wrong_selections() -> None:
    truth = truth_of([[1], [2]])
    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected \(2, S\)"):
        category_recall(truth, np.zeros((1, 3), dtype=np.int64))
    with pytest.raises(ValueError, match=r"1 selected categories are outside 0\.\.8.*first is 9"):
        category_recall(truth, np.array([[9], [0]]))
