# SPDX-License-Identifier: Apache-2.0
"""Scores of detections from class and centre-ness; R locations, K classes.

All functions take logits (..., R, K), centre-ness logits (..., R, 1) and a threshold in [0, 1), and
return scores (..., R, K) in [0, 1), 0 for what the threshold drops.
"""

from collections.abc import Callable

from torch import Tensor

ScoreFunction = Callable[[Tensor, Tensor, float], Tensor]


def product_score(logits: Tensor, centerness_logits: Tensor, threshold: float) -> Tensor:
    """Class probability x centre-ness; drops class probabilities of at most `threshold`."""
    probabilities = logits.float().sigmoid()
    scores = probabilities * centerness_logits.float().sigmoid()
    return scores.masked_fill(probabilities <= threshold, 0)


def root_product_score(logits: Tensor, centerness_logits: Tensor, threshold: float) -> Tensor:
    """Square root of `product_score`: the same order, and the same detections dropped."""
    return product_score(logits, centerness_logits, threshold).sqrt()


def sqrt_score(logits: Tensor, centerness_logits: Tensor, threshold: float) -> Tensor:
    """Square root of the product; drops roots of at most `threshold`.

    From FCOS's journal version (Tian et al., TPAMI 2021, equation 4).
    """
    scores = (logits.float().sigmoid() * centerness_logits.float().sigmoid()).sqrt()
    return scores.masked_fill(scores <= threshold, 0)
