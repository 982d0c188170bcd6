# SPDX-License-Identifier: Apache-2.0
"""From the predictions of queries to the detections of an image.

B images, Q queries, K classes, N detections kept. Boxes are CXCYWH as shares of the image.
"""

from collections.abc import Callable, Sequence

from detectron2.layers import batched_nms
from torch import Tensor

from vastdet.layers.boxes import cxcywh_to_xyxy

# Maps logits (B, Q, K), boxes (B, Q, 4) and the largest number of detections to scores in [0, 1],
# best first, the query and the class of each detection, all (B, N), or (N,) for each image.
SelectDetections = Callable[
    [Tensor, Tensor, int], tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]
]


def best_pairs(logits: Tensor, boxes: Tensor, max_detections: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of query and class with the highest sigmoid; a query may give several."""
    scores = logits.float().sigmoid().flatten(1)
    num_classes = logits.shape[-1]
    top, indices = scores.topk(min(max_detections, scores.shape[1]), dim=1)
    return top, indices // num_classes, indices % num_classes


def best_queries(
    logits: Tensor, boxes: Tensor, max_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The queries with the highest softmax of a class; the last logit means no object (DETR)."""
    scores, classes = logits.float().softmax(dim=-1)[..., :-1].max(dim=-1)
    top, queries = scores.topk(min(max_detections, scores.shape[1]), dim=1)
    return top, queries, classes.gather(1, queries)


def pairs_after_nms(
    logits: Tensor,
    boxes: Tensor,
    max_detections: int,
    *,
    nms_threshold: float,
    max_candidates: int = 10000,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The best pairs of query and class, without those that repeat a better one of their class.

    Args:
        logits: see `SelectDetections`.
        boxes: see `SelectDetections`.
        max_detections: see `SelectDetections`.
        nms_threshold: IoU above which the worse of two detections of a class is dropped.
        max_candidates: pairs that NMS sees (as many as DETA's code takes).
    """
    corners = cxcywh_to_xyxy(boxes)
    kept: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for i, pairs in enumerate(zip(*best_pairs(logits, boxes, max_candidates), strict=True)):
        scores, queries, classes = pairs
        left = batched_nms(corners[i, queries], scores, classes, nms_threshold)[:max_detections]
        for found, values in zip(kept, (scores, queries, classes), strict=True):
            found.append(values[left])
    return kept
