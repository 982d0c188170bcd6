# SPDX-License-Identifier: Apache-2.0
import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from vastdet.detr.detections import best_pairs, best_queries, pairs_after_nms
from vastdet.layers.boxes import cxcywh_to_xyxy

BOXES = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]])


def test_pairs_of_one_query_may_all_be_kept() -> None:
    logits = torch.tensor([[[2.0, 1.0], [-1.0, 0.0]]])
    scores, queries, classes = best_pairs(logits, BOXES, 3)
    torch.testing.assert_close(scores, torch.tensor([[2.0, 1.0, 0.0]]).sigmoid())
    assert queries.tolist() == [[0, 0, 1]]
    assert classes.tolist() == [[0, 1, 1]]
    assert best_pairs(logits, BOXES, 100)[0].shape == (1, 4)


def test_queries_with_no_object_come_last() -> None:
    logits = torch.tensor([[[0.0, 0.0, 5.0], [3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    scores, queries, classes = best_queries(logits, BOXES, 2)
    assert queries.tolist() == [[1, 2]]
    assert classes.tolist() == [[0, 1]]
    assert scores[0, 0] == logits[0, 1].softmax(0)[0]
    assert best_queries(logits, BOXES, 9)[0].shape == (1, 3)


def test_a_detection_drops_worse_ones_of_its_class_that_overlap_it() -> None:
    logits = torch.tensor([[[2.0, -1.0], [1.0, 3.0], [0.0, -2.0]]])
    scores, queries, classes = pairs_after_nms(logits, BOXES, 10, nms_threshold=0.7)
    assert queries[0].tolist() == [1, 0, 2, 2]
    assert classes[0].tolist() == [1, 0, 0, 1]
    torch.testing.assert_close(scores[0], torch.tensor([3.0, 2.0, 0.0, -2.0]).sigmoid())
    assert pairs_after_nms(logits, BOXES, 2, nms_threshold=0.7)[1][0].tolist() == [1, 0]


def test_nms_sees_the_best_candidates_only() -> None:
    logits = torch.tensor([[[2.0, -1.0], [1.0, 3.0], [0.0, -2.0]]])
    found = pairs_after_nms(logits, BOXES, 10, nms_threshold=0.7, max_candidates=3)
    assert found[1][0].tolist() == [1, 0]


def test_nms_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 40, 3, generator=generator)
    boxes = torch.rand(2, 40, 4, generator=generator) * 0.3 + 0.3
    found = pairs_after_nms(logits, boxes, 50, nms_threshold=0.5)
    assert {len(scores) for scores in found[0]} != {50}, (
        "NMS must leave fewer for this to be a test"
    )
    for i in range(2):
        wanted = kept_by_loops(logits[i], boxes[i], 0.5)[:50]
        assert list(zip(found[1][i].tolist(), found[2][i].tolist(), strict=True)) == wanted


def kept_by_loops(logits: Tensor, boxes: Tensor, threshold: float) -> list[tuple[int, int]]:
    corners = Boxes(cxcywh_to_xyxy(boxes))
    ious = pairwise_iou(corners, corners)
    num_queries, num_classes = logits.shape
    pairs = [(q, k) for q in range(num_queries) for k in range(num_classes)]
    kept: list[tuple[int, int]] = []
    for query, label in sorted(pairs, key=lambda pair: -logits[pair].item()):
        if all(k != label or ious[query, q] <= threshold for q, k in kept):
            kept.append((query, label))
    return kept
