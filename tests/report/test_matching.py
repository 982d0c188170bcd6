# SPDX-License-Identifier: Apache-2.0
import torch

from vastdet.report.matching import (
    best_operating_point,
    evenly_spaced,
    match_detections,
    operating_point,
)

NONE = torch.zeros(0, 4)


def test_the_better_score_takes_the_box() -> None:
    gt = torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30]], dtype=torch.float32)
    pred = torch.tensor(
        [[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], dtype=torch.float32
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    classes = torch.zeros(4, dtype=torch.int64)
    matched = match_detections(gt, classes[:2], NONE, pred, classes, scores)
    assert matched.tolist() == [0, -1, 1, -1]
    # Without the low scores, the others keep their match.
    top = match_detections(gt, classes[:2], NONE, pred[:2], classes[:2], scores[:2])
    assert top.tolist() == [0, -1]


def test_another_category_is_no_match_and_crowd_is_ignored() -> None:
    gt = torch.tensor([[0.0, 0, 10, 10]])
    pred = torch.tensor([[0.0, 0, 10, 10], [52, 52, 60, 60]])
    crowd = torch.tensor([[50.0, 50, 90, 90]])
    one = torch.ones(1, dtype=torch.int64)
    classes = torch.tensor([0, 1])
    matched = match_detections(gt, one, crowd, pred, classes, torch.tensor([0.5, 0.4]))
    assert matched.tolist() == [-1, -2]


def test_empty_sides() -> None:
    box, index = torch.tensor([[0.0, 0, 9, 9]]), torch.zeros(1, dtype=torch.int64)
    no_index = torch.zeros(0, dtype=torch.int64)
    assert match_detections(NONE, no_index, NONE, box, index, torch.ones(1)).tolist() == [-1]
    assert match_detections(box, index, box, NONE, no_index, torch.zeros(0)).tolist() == []


def test_the_threshold_has_the_best_f1() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, generator=generator)
    correct = torch.rand(200, generator=generator) < scores
    point = best_operating_point(scores, correct, 150)
    assert point is not None

    def f1(threshold: float) -> float:
        p = operating_point(scores, correct, 150, threshold)
        return 2 * p.precision * p.recall / max(p.precision + p.recall, 1e-9)

    # Cut to two decimals, it may miss the best by the few detections in between.
    assert f1(point.threshold) > max(f1(t / 100) for t in range(100)) - 0.01


def test_nothing_right_has_no_best_threshold() -> None:
    assert best_operating_point(torch.rand(3), torch.zeros(3, dtype=torch.bool), 5) is None
    assert best_operating_point(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 0) is None
    point = operating_point(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 0, 0.5)
    assert (point.precision, point.recall) == (0, 0)


def test_evenly_spaced() -> None:
    assert list(evenly_spaced(10, 3)) == [0, 3, 6]
    assert list(evenly_spaced(2, 5)) == [0, 1]
    assert list(evenly_spaced(0, 5)) == []
