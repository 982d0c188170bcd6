# SPDX-License-Identifier: Apache-2.0
"""From the logits of queries to the detections of an image.

B images, Q queries, K classes, N detections kept.
"""

from collections.abc import Callable

from torch import Tensor

# Maps logits (B, Q, K) and the largest number of detections to scores in [0, 1], best first, the
# query and the class of each detection, all (B, N).
SelectDetections = Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]


def best_pairs(logits: Tensor, max_detections: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of query and class with the highest sigmoid; a query may give several."""
    scores = logits.float().sigmoid().flatten(1)
    num_classes = logits.shape[-1]
    top, indices = scores.topk(min(max_detections, scores.shape[1]), dim=1)
    return top, indices // num_classes, indices % num_classes


def best_queries(logits: Tensor, max_detections: int) -> tuple[Tensor, Tensor, Tensor]:
    """The queries with the highest softmax of a class; the last logit means no object (DETR)."""
    scores, classes = logits.float().softmax(dim=-1)[..., :-1].max(dim=-1)
    top, queries = scores.topk(min(max_detections, scores.shape[1]), dim=1)
    return top, queries, classes.gather(1, queries)
