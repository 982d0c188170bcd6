# SPDX-License-Identifier: Apache-2.0
"""The three losses of FCOS (sections 3.1 and 3.3; textbook form in its README) and of ATSS.

B images, R locations of all levels, K classes, P positive locations.
"""

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor

from vastdet.layers.distances import centerness, giou_from_distances, iou_from_distances
from vastdet.layers.distributed import mean_over_ranks
from vastdet.layers.observed_logits import observed
from vastdet.one_stage.targets import LocationTargets


def iou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """-log(IoU) of distances, (P, 4) x 2 -> (P,)."""
    return -iou_from_distances(pred, target).log()


def linear_iou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - IoU of distances, (P, 4) x 2 -> (P,)."""
    return 1 - iou_from_distances(pred, target)


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of distances, (P, 4) x 2 -> (P,)."""
    return 1 - giou_from_distances(pred, target)


LOC_LOSSES = {"iou": iou_loss, "linear_iou": linear_iou_loss, "giou": giou_loss}
LOC_LOSS_WEIGHTINGS = ("centerness", "centerness_mean", "none")


class CenternessCriterion:
    """Focal loss on all locations; IoU loss and centre-ness cross-entropy on positives."""

    def __init__(
        self,
        *,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        loc_loss_type: str = "iou",
        loc_loss_weighting: str = "centerness",
        loc_loss_weight: float = 1.0,
    ) -> None:
        """Choose the losses.

        Args:
            num_classes: K.
            focal_loss_alpha: share of positives in the focal loss, in [0, 1].
            focal_loss_gamma: its exponent.
            loc_loss_type: a key of `LOC_LOSSES`.
            loc_loss_weighting: one of `LOC_LOSS_WEIGHTINGS` (FCOS's README, "Config keys").
            loc_loss_weight: factor of `loss_box_reg`.
        """
        self.num_classes = num_classes
        self.alpha = focal_loss_alpha
        self.gamma = focal_loss_gamma
        self.loc_loss = LOC_LOSSES[loc_loss_type]
        self.loc_loss_weighting = loc_loss_weighting
        self.loc_loss_weight = loc_loss_weight

    def __call__(
        self, logits: Tensor, distances: Tensor, centerness_logits: Tensor, targets: LocationTargets
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            logits: class logits (B, R, K).
            distances: predicted distances (B, R, 4), in the units of `targets`; negative where a
                box leaves its location out.
            centerness_logits: (B, R).
            targets: what the assigner made.

        Returns:
            Scalars `loss_cls`, `loss_box_reg` and `loss_centerness`. Sums are divided by the number
            of positives (at least 1) averaged over all processes, so that gradients averaged over
            processes are those of one large batch.
        """
        is_positive = targets.gt_classes < self.num_classes
        logits = observed(logits, torch.where(is_positive, targets.gt_classes, -1))
        positive = is_positive.nonzero(as_tuple=True)
        one_hot = torch.zeros_like(logits, dtype=torch.float32)
        one_hot[(*positive, targets.gt_classes[positive])] = 1
        gt_distances = targets.gt_distances[positive]
        gt_centerness = centerness(gt_distances)
        num_positives = gt_centerness.new_tensor(len(gt_centerness))
        totals = mean_over_ranks(torch.stack([num_positives, gt_centerness.sum()]))
        num_positives, sum_centerness = totals[0].clamp(min=1), totals[1].clamp(min=1e-6)

        loss_cls = sigmoid_focal_loss_jit(
            logits.float(), one_hot, alpha=self.alpha, gamma=self.gamma, reduction="sum"
        )
        loss_box_reg = self.loc_loss(distances[positive], gt_distances)
        if self.loc_loss_weighting != "none":
            loss_box_reg = loss_box_reg * gt_centerness
        by_centerness = self.loc_loss_weighting == "centerness_mean"
        loss_centerness = F.binary_cross_entropy_with_logits(
            centerness_logits[positive].float(), gt_centerness, reduction="sum"
        )
        return {
            "loss_cls": loss_cls / num_positives,
            "loss_box_reg": self.loc_loss_weight
            * loss_box_reg.sum()
            / (sum_centerness if by_centerness else num_positives),
            "loss_centerness": loss_centerness / num_positives,
        }
