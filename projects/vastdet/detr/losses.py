# SPDX-License-Identifier: Apache-2.0
"""Class losses of set-prediction detectors.

N layers, B images, Q queries, K classes. `labels` (N, B, Q) hold the class of the box that a query
answers for, -1 where it answers for none. `ious` (N, B, Q) hold the IoU of its box with that box,
or what the loss takes in its place, without gradient. Losses are in float32.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from vastdet.layers.observed_logits import observed
from vastdet.layers.precision import at_least_float32


class ClassLoss(ABC):
    """How wrong the class logits of the queries are, as a sum over them for each box."""

    def quality(self, iou: Tensor, giou: Tensor) -> Tensor:
        """What the loss takes as `ious`, from the IoU and the generalised IoU of each pair."""
        return iou

    @abstractmethod
    def per_query(self, logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        """(N, B, Q, K) logits, labels and IoUs to (N, B, Q), sums over classes."""

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        ious: Tensor,
        *,
        num_boxes: Tensor,
        counted: Tensor | None = None,
    ) -> Tensor:
        """The loss of each layer, (N,); its logits and their gradient can be observed.

        Args:
            logits: (N, B, Q, K).
            labels: see the module.
            ious: see the module.
            num_boxes: scalar; the sum is divided by it.
            counted: (B, Q) bool, the queries that enter the sum; None for all.
        """
        logits = observed(logits, labels, counted)
        losses = self.per_query(logits, labels, ious)
        if counted is not None:
            losses = losses * counted
        return losses.sum(dim=(1, 2)) / num_boxes


class FocalLoss(ClassLoss):
    """Sigmoid focal loss (Lin et al. 2017, Eq. 5).

    No (N, B, Q, K) target is built: all classes are counted as absent, and the difference is added
    where one is present, so that memory stays low with thousands of classes.
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0) -> None:
        """`alpha` is the weight of a present class, `gamma` the focusing exponent."""
        self.alpha = alpha
        self.gamma = gamma

    def per_query(self, logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        """See `ClassLoss`; IoUs do not matter."""
        is_matched = labels >= 0
        present = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        change = self._present(present) - self._absent(present)
        return self._absent(logits).sum(dim=-1) + torch.where(is_matched, change, 0.0)

    def _absent(self, logits: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        return (1 - self.alpha) * logits.sigmoid() ** self.gamma * F.softplus(logits)

    def _present(self, logits: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        return self.alpha * (-logits).sigmoid() ** self.gamma * F.softplus(-logits)


class SigmoidCrossEntropyLoss(ClassLoss):
    """Binary cross-entropy of every class: its gradient is the probability, less 1 where present.

    As in `FocalLoss`, no (N, B, Q, K) target is built.
    """

    def per_query(self, logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        """See `ClassLoss`; IoUs do not matter."""
        present = at_least_float32(logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1))
        absent = F.softplus(at_least_float32(logits)).sum(dim=-1)
        return absent - torch.where(labels >= 0, present, 0.0)


class VarifocalLoss(ClassLoss):
    """Binary cross-entropy whose target for the class of a matched query is the IoU of its box.

    Zhang et al. 2021 (VarifocalNet), Eq. 2: a present class has the weight of its target q, an
    absent one alpha * p^gamma. Weights carry no gradient, as in RT-DETR and Relation-DETR.
    """

    def __init__(self, *, alpha: float = 0.75, gamma: float = 2.0) -> None:
        """`alpha` scales the weight of absent classes, `gamma` is its focusing exponent."""
        self.alpha = alpha
        self.gamma = gamma

    def per_query(self, logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        """See `ClassLoss`."""
        present = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        change = self._present(present, at_least_float32(ious)) - self._absent(present)
        return self._absent(logits).sum(dim=-1) + torch.where(labels >= 0, change, 0.0)

    def _absent(self, logits: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        return self.alpha * logits.detach().sigmoid() ** self.gamma * F.softplus(logits)

    def _present(self, logits: Tensor, target: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        return target * (F.softplus(logits) - target * logits)


class GIoUAwareLoss(FocalLoss):
    """Focal loss whose target for a present class is the generalised IoU, moved to [0, 1].

    Pu et al. 2023 (Rank-DETR): with t = (GIoU + 1) / 2 a present class has the loss
    alpha * |t - p|^gamma times the cross-entropy of p and t, an absent one that of the focal loss.
    """

    def quality(self, iou: Tensor, giou: Tensor) -> Tensor:
        """The target t of each pair."""
        return (giou + 1) / 2

    def per_query(self, logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        """See `ClassLoss`; `ious` hold the targets t."""
        present = at_least_float32(logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1))
        weight = self.alpha * (ious - present.sigmoid()).abs() ** self.gamma
        change = weight * (F.softplus(present) - ious * present) - self._absent(present)
        return self._absent(logits).sum(dim=-1) + torch.where(labels >= 0, change, 0.0)


class CrossEntropyLoss(ClassLoss):
    """Softmax cross-entropy with a last class, no object, of low weight (Carion et al. 2020, 3.1).

    The mean over the queries of a layer, each with the weight of its class: the number of boxes
    does not matter, nor do other processes.
    """

    def __init__(self, *, no_object_weight: float = 0.1) -> None:
        """`no_object_weight` is the weight of queries that answer for no box; others have 1."""
        self.no_object_weight = no_object_weight

    def weights(self, labels: Tensor) -> Tensor:
        """The weight of each query, like `labels`, in float32."""
        return torch.where(labels >= 0, 1.0, self.no_object_weight)

    def per_query(self, logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        """See `ClassLoss`; logit K - 1 is no object, IoUs do not matter."""
        classes = torch.where(labels >= 0, labels, logits.shape[-1] - 1)
        log_p = at_least_float32(logits).log_softmax(dim=-1)
        return -log_p.gather(-1, classes.unsqueeze(-1)).squeeze(-1) * self.weights(labels)

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        ious: Tensor,
        *,
        num_boxes: Tensor,
        counted: Tensor | None = None,
    ) -> Tensor:
        """See `ClassLoss.__call__`; the divisor is the sum of weights, not `num_boxes`."""
        losses, weights = self.per_query(logits, labels, ious), self.weights(labels)
        if counted is not None:
            losses, weights = losses * counted, weights * counted
        total = weights.sum(dim=(1, 2))
        # Where no query is counted the loss is zero, not the quotient of two zeros.
        return losses.sum(dim=(1, 2)) / torch.where(total > 0, total, 1.0)
