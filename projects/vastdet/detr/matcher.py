# SPDX-License-Identifier: Apache-2.0
"""Which query answers for which box.

B images, N layers, Q queries, K classes, G slots for ground-truth boxes. Boxes are CXCYWH as shares
of the image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vastdet.detr.structures import LayerPredictions, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy, generalized_iou
from vastdet.layers.precision import at_least_float32


class Assigner(ABC):
    """Gives every query of every layer a ground-truth box, or none."""

    @abstractmethod
    def assign(self, predictions: LayerPredictions, targets: Targets) -> Tensor:
        """(N, B, Q) int64: the slot of the box that a query answers for, -1 for none."""


# Maps logits (N, B, Q, K) and the class of each slot (N, B, Q, G) to costs (N, B, Q, G).
ClassCost = Callable[[Tensor, Tensor], Tensor]


def focal_cost(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    eps: float = 1e-8,
) -> Tensor:
    """What the focal loss would change if the class were present (Zhu et al. 2021); a ClassCost."""
    p = at_least_float32(logits.gather(-1, labels)).sigmoid()
    absent = (1 - alpha) * p**gamma * -torch.log(1 - p + eps)
    present = alpha * (1 - p) ** gamma * -torch.log(p + eps)
    return present - absent


def prompt_focal_cost(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    eps: float = 1e-12,
) -> Tensor:
    """The focal loss of all K logits of a query if a box were its answer; a ClassCost.

    As MMDetection computes it for Grounding DINO, and the authors of CQ-DINO: other than in
    `focal_cost`, queries that are sure of many classes cost more with any box. A label of -1 is a
    class that is not among the K: none of the logits should be high.
    """
    p = at_least_float32(logits).sigmoid()
    absent = (1 - alpha) * p**gamma * -torch.log(1 - p + eps)
    chosen = labels.clamp(min=0)
    likely = p.gather(-1, chosen)
    present = alpha * (1 - likely) ** gamma * -torch.log(likely + eps)
    change = torch.where(labels >= 0, present - absent.gather(-1, chosen), 0.0)
    return absent.sum(dim=-1, keepdim=True) + change


def softmax_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of the class (Carion et al. 2020, section 3.1); a ClassCost."""
    return -at_least_float32(logits).softmax(dim=-1).gather(-1, labels)


class HungarianMatcher(Assigner):
    """The exact one-to-one assignment of least cost (Carion et al. 2020, Eq. 1).

    The cost of a pair is a weighted sum of the cost of the class, the L1 distance of the
    boxes and the negative generalised IoU. All layers are matched with one transfer from the
    device.
    """

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        giou_eps: float = 0.0,
        class_cost: ClassCost = focal_cost,
    ) -> None:
        """`giou_eps` is added to the divisors of the generalised IoU."""
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.giou_eps = giou_eps
        self.class_cost = class_cost

    @torch.no_grad()
    def cost(self, predictions: LayerPredictions, targets: Targets) -> Tensor:
        """(N, B, Q, G), at least float32; the columns of empty slots mean nothing."""
        logits, boxes = predictions.logits, at_least_float32(predictions.boxes)
        num_layers, _, num_queries, _ = logits.shape
        labels = targets.labels[None, :, None].expand(num_layers, -1, num_queries, -1)
        class_cost = self.class_cost(logits, labels)
        gt_boxes = targets.boxes.expand(num_layers, -1, -1, -1)
        l1_cost = torch.cdist(boxes, gt_boxes, p=1)
        _, giou = generalized_iou(
            cxcywh_to_xyxy(boxes).unsqueeze(3),
            cxcywh_to_xyxy(gt_boxes).unsqueeze(2),
            self.giou_eps,
        )
        return self.class_weight * class_cost + self.l1_weight * l1_cost - self.giou_weight * giou

    def assign(self, predictions: LayerPredictions, targets: Targets) -> Tensor:
        """See `Assigner.assign`; with fewer queries than boxes, some boxes get none.

        Raises:
            FloatingPointError: a cost is infinite or not a number; the image is named.
        """
        num_layers, num_images, num_queries, _ = predictions.logits.shape
        matched = np.full((num_layers, num_images, num_queries), -1, dtype=np.int64)
        cost = self.cost(predictions, targets).cpu().numpy()
        for layer in range(num_layers):
            for image, count in enumerate(targets.num_boxes):
                pairs = cost[layer, image, :, :count]
                if not np.isfinite(pairs).all():
                    raise_non_finite(targets, layer, image)
                query, slot = linear_sum_assignment(pairs)
                matched[layer, image, query] = slot
        return torch.from_numpy(matched).to(predictions.logits.device)


def raise_non_finite(targets: Targets, layer: int, image: int) -> None:
    """Stop the training, naming the image whose predictions cannot be matched."""
    raise FloatingPointError(
        f"The predictions of layer {layer + 1} cannot be matched to the {targets.num_boxes[image]} "
        f"boxes of {targets.names[image]}: a class score or a box is infinite or NaN. Look at this "
        "image and its boxes (tools/visualize_data.py). If they are right, lower SOLVER.BASE_LR, "
        "lengthen SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED True."
    )
