# SPDX-License-Identifier: Apache-2.0
"""The matching cost of Rank-DETR, which late in training asks for score and overlap at once.

N layers, B images, Q queries, G slots for ground-truth boxes.
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from vastdet.detr.matcher import HungarianMatcher
from vastdet.detr.structures import LayerPredictions, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy, generalized_iou
from vastdet.layers.precision import at_least_float32


def training_iteration() -> int:
    """The iteration that Detectron2's trainer is in, counted from 0; -1 outside of a trainer."""
    return get_event_storage().iter if has_event_storage() else -1


class HighOrderMatcher(HungarianMatcher):
    """From an iteration on, the cost is minus the class probability times a power of the IoU.

    Pu et al. 2023: a pair must have both a high score and a high overlap to be cheap. Before, the
    cost is that of `HungarianMatcher`.
    """

    def __init__(
        self,
        *,
        start_iteration: int,
        iou_power: float = 4.0,
        iteration: Callable[[], int] = training_iteration,
        **weights: Any,
    ) -> None:
        """Take the amounts.

        Args:
            start_iteration: the first iteration with the high-order cost.
            iou_power: the power of the IoU.
            iteration: tells the current one.
            weights: of the cost before; see `HungarianMatcher`.
        """
        super().__init__(**weights)
        self.start_iteration = start_iteration
        self.iou_power = iou_power
        self.iteration = iteration

    @torch.no_grad()
    def cost(self, predictions: LayerPredictions, targets: Targets) -> Tensor:
        """(N, B, Q, G), at least float32; the columns of empty slots mean nothing."""
        if self.iteration() < self.start_iteration:
            return super().cost(predictions, targets)
        num_layers, _, num_queries, _ = predictions.logits.shape
        labels = targets.labels[None, :, None].expand(num_layers, -1, num_queries, -1)
        probability = at_least_float32(predictions.logits.gather(-1, labels)).sigmoid()
        iou, _ = generalized_iou(
            cxcywh_to_xyxy(at_least_float32(predictions.boxes)).unsqueeze(3),
            cxcywh_to_xyxy(targets.boxes)[:, None],
            self.giou_eps,
        )
        return -probability * iou**self.iou_power
