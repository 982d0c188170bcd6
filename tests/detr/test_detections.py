# SPDX-License-Identifier: Apache-2.0
import torch

from vastdet.detr.detections import best_pairs, best_queries


def test_pairs_of_one_query_may_all_be_kept() -> None:
    logits = torch.tensor([[[2.0, 1.0], [-1.0, 0.0]]])
    scores, queries, classes = best_pairs(logits, 3)
    torch.testing.assert_close(scores, torch.tensor([[2.0, 1.0, 0.0]]).sigmoid())
    assert queries.tolist() == [[0, 0, 1]]
    assert classes.tolist() == [[0, 1, 1]]
    assert best_pairs(logits, 100)[0].shape == (1, 4)


def test_queries_with_no_object_come_last() -> None:
    logits = torch.tensor([[[0.0, 0.0, 5.0], [3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    scores, queries, classes = best_queries(logits, 2)
    assert queries.tolist() == [[1, 2]]
    assert classes.tolist() == [[0, 1]]
    assert scores[0, 0] == logits[0, 1].softmax(0)[0]
    assert best_queries(logits, 9)[0].shape == (1, 3)
