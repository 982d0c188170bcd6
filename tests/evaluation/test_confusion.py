# SPDX-License-Identifier: Apache-2.0
"""The confusion matrix against a plain loop, against COCO's true positives, and at its edges."""

import numpy as np
import pytest

from vastdet.evaluation.confusion import confusion_matrix, greedy_matches
from vastdet.evaluation.detections import NO_DETECTIONS, Detections
from vastdet.evaluation.engines import accumulate
from vastdet.evaluation.ground_truth import GroundTruth, from_coco


def scene(seed: int, *, num_categories: int = 4, ties: bool = True):
    generator = np.random.default_rng(seed)
    boxes, rows = [], []
    for image in range(8):
        for _ in range(generator.integers(0, 8)):
            box = [*generator.integers(0, 120, 2).tolist(), *generator.integers(10, 90, 2).tolist()]
            category = int(generator.integers(0, num_categories))
            crowd = int(generator.random() < 0.2)
            boxes.append(
                {"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
            )
            for _ in range(generator.integers(0, 4)):
                other = int(generator.integers(0, num_categories))
                moved = np.array(box) + generator.integers(-9, 10, 4)
                score = generator.random()
                rows.append(
                    (
                        image,
                        category if generator.random() < 0.6 else other,
                        np.maximum(moved, 1),
                        round(score, 1) if ties else score,
                    )
                )
    truth = from_coco(
        {
            "images": [{"id": i} for i in range(8)],
            "categories": [{"id": k, "name": f"c{k}"} for k in range(num_categories)],
            "annotations": boxes,
        }
    )
    columns = list(zip(*rows, strict=True))
    found = Detections(
        image_index=np.array(columns[0]),
        category_index=np.array(columns[1]),
        boxes=np.array(columns[2], dtype=float),
        scores=np.array(columns[3]),
    )
    return truth, found


def iou(a: np.ndarray, b: np.ndarray, *, crowd: bool) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - common)


def by_loops(truth: GroundTruth, found: Detections, lowest: float, enough: float) -> np.ndarray:
    num_categories = truth.num_categories
    matrix = np.zeros((num_categories + 1, num_categories + 1), dtype=int)
    for image in range(len(truth.image_ids)):
        boxes = [i for i in range(len(truth.boxes)) if truth.image_index[i] == image]
        mine = [i for i in range(len(found)) if found.image_index[i] == image]
        mine = sorted(
            (i for i in mine if found.scores[i] >= lowest), key=lambda i: -found.scores[i]
        )
        free = [b for b in boxes if not truth.is_crowd[b]]
        left = []
        for same in (True, False):
            waiting, left = (mine if same else left), []
            for i in waiting:
                category = found.category_index[i]
                crowds = [b for b in boxes if truth.is_crowd[b]]
                ignored = any(
                    truth.category_index[b] == category
                    and iou(found.boxes[i], truth.boxes[b], crowd=True) >= enough
                    for b in crowds
                )
                claims = [
                    (iou(found.boxes[i], truth.boxes[b], crowd=False), -b)
                    for b in free
                    if (truth.category_index[b] == category) == same
                ]
                claims = [claim for claim in claims if claim[0] >= enough]
                if claims and (same or not ignored):
                    taken = -max(claims)[1]
                    free.remove(taken)
                    matrix[truth.category_index[taken], category] += 1
                elif same:
                    left.append(i)
                elif not ignored:
                    matrix[num_categories, category] += 1
        for b in free:
            matrix[truth.category_index[b], num_categories] += 1
    return matrix


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("lowest", [0.0, 0.4])
def test_equals_loops(seed: int, lowest: float) -> None:
    truth, found = scene(seed)
    for enough in (0.5, 0.75):
        matrix = confusion_matrix(truth, found, score_threshold=lowest, iou_threshold=enough)
        np.testing.assert_array_equal(matrix.dense(), by_loops(truth, found, lowest, enough))


@pytest.mark.parametrize("seed", range(5))
def test_diagonal_is_cocos_true_positives(seed: int) -> None:
    truth, found = scene(seed, ties=False)
    matrix = confusion_matrix(truth, found, score_threshold=0).dense()
    recall = accumulate(truth, found).recall[0, :, 0, -1]
    boxes = np.bincount(truth.category_index[~truth.is_crowd], minlength=4)
    np.testing.assert_array_equal(matrix.sum(axis=1)[:-1], boxes)
    np.testing.assert_allclose(np.diag(matrix)[:-1][boxes > 0], (recall * boxes)[boxes > 0])


def test_edges() -> None:
    truth, found = scene(0)
    nothing = confusion_matrix(truth, NO_DETECTIONS, score_threshold=0).dense()
    assert nothing[:, :-1].sum() == 0
    assert nothing[:, -1].sum() == (~truth.is_crowd).sum()
    unlabelled = from_coco(
        {
            "images": [{"id": i} for i in range(8)],
            "categories": [{"id": k, "name": f"c{k}"} for k in range(4)],
            "annotations": [],
        }
    )
    false_alarms = confusion_matrix(unlabelled, found, score_threshold=0).dense()
    assert false_alarms[-1].sum() == false_alarms.sum() == len(found)
    assert confusion_matrix(unlabelled, NO_DETECTIONS, score_threshold=0).dense().sum() == 0


def test_pairs_are_ordered_and_leave_out_background() -> None:
    truth, found = scene(3)
    matrix = confusion_matrix(truth, found, score_threshold=0)
    pairs = matrix.confused_pairs()
    dense = matrix.dense()[:-1, :-1]
    assert sum(count for *_, count in pairs) == dense.sum() - np.trace(dense) > 0
    assert all(dense[a, b] == count and a != b for a, b, count in pairs)
    assert [count for *_, count in pairs] == sorted((c for *_, c in pairs), reverse=True)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_matches_equal_taking_pairs_one_by_one(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.integers(0, 30, (2, 200))
    taken: list[tuple[int, int]] = []
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        if all(a != x and b != y for x, y in taken):
            taken.append((a, b))
    matches = zip(*(part.tolist() for part in greedy_matches(first, second)), strict=True)
    assert sorted(matches) == sorted(taken)


def test_sparse_matrix_fits_thousands_of_categories() -> None:
    truth, found = scene(1, num_categories=20000)
    matrix = confusion_matrix(truth, found, score_threshold=0)
    assert len(matrix.count) <= len(truth.boxes) + len(found)
