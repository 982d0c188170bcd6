# SPDX-License-Identifier: Apache-2.0
"""The losses of the first stage: a focal loss of heatmaps and GIoU of distances (section 4).

B images, R locations of all levels, P peaks of the batch.
"""

import torch
from torch import Tensor

from vastdet.layers.distances import giou_from_distances
from vastdet.layers.distributed import mean_over_ranks
from vastdet.models.centernet2.targets import CenterTargets

# Added to intersection and union, in square strides: the authors' iou_loss.py.
IOU_SMOOTH = 1.0


def heatmap_focal_loss(
    logits: Tensor,
    heatmaps: Tensor,
    peaks: tuple[Tensor, Tensor],
    *,
    beta: float = 4.0,
    gamma: float = 2.0,
    prob_clamp: float = 1e-4,
    ignore_high_fp: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sums of the penalty-reduced focal loss (CornerNet, Law and Deng 2018, equation 1).

    With probabilities p and heat y, a peak costs -(1 - p)^gamma log p, every location, peaks
    included (where y is 1), -(1 - y)^beta p^gamma log(1 - p).

    Args:
        logits: (B, R).
        heatmaps: y, (B, R) in [0, 1].
        peaks: image and location of each peak, (P,) each; a peak may be there twice.
        beta: power of 1 - y.
        gamma: power of the error.
        prob_clamp: p is kept within [prob_clamp, 1 - prob_clamp], without gradient beyond.
        ignore_high_fp: p from which the second part is left out.

    Returns:
        The sum over peaks and the sum over locations, float32 scalars.
    """
    p = logits.float().sigmoid().clamp(prob_clamp, 1 - prob_clamp)
    at_peaks = p[peaks]
    loss_pos = -(1 - at_peaks).pow(gamma) * at_peaks.log()
    loss_neg = -(1 - heatmaps).pow(beta) * p.pow(gamma) * (1 - p).log()
    return loss_pos.sum(), (loss_neg * (p < ignore_high_fp)).sum()


class CenterNetCriterion:
    """The focal loss of peaks and of the rest, and GIoU of the distances about the peaks."""

    def __init__(
        self,
        *,
        alpha: float = 0.25,
        beta: float = 4.0,
        gamma: float = 2.0,
        prob_clamp: float = 1e-4,
        ignore_high_fp: float = 0.85,
        pos_weight: float = 0.5,
        neg_weight: float = 0.5,
        reg_weight: float = 1.0,
    ) -> None:
        """Set weights; `alpha` is the peaks' share of the focal loss, the rest's is 1 - alpha."""
        self.pos_weight = pos_weight * alpha
        self.neg_weight = neg_weight * (1 - alpha)
        self.reg_weight = reg_weight
        self.beta = beta
        self.gamma = gamma
        self.prob_clamp = prob_clamp
        self.ignore_high_fp = ignore_high_fp

    def __call__(
        self, logits: Tensor, distances: Tensor, targets: CenterTargets
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            logits: of the heatmap, (B, R).
            distances: predicted distances (B, R, 4), non-negative, in strides.
            targets: what the assigner made.

        Returns:
            Scalars `loss_centernet_pos`, `loss_centernet_neg`, both over the number of peaks, and
            `loss_centernet_loc`, over the number of locations with distances. Both numbers are
            averaged over all processes and at least 1.
        """
        loss_pos, loss_neg = heatmap_focal_loss(
            logits,
            targets.heatmaps,
            targets.peaks,
            beta=self.beta,
            gamma=self.gamma,
            prob_clamp=self.prob_clamp,
            ignore_high_fp=self.ignore_high_fp,
        )
        counts = torch.stack(
            [loss_pos.new_tensor(len(targets.peaks[0])), targets.regressed.sum().to(loss_pos)]
        )
        num_peaks, num_regressed = mean_over_ranks(counts).clamp(min=1)
        giou = giou_from_distances(
            distances[targets.regressed], targets.gt_distances[targets.regressed], IOU_SMOOTH
        )
        return {
            "loss_centernet_pos": self.pos_weight * loss_pos / num_peaks,
            "loss_centernet_neg": self.neg_weight * loss_neg / num_peaks,
            "loss_centernet_loc": self.reg_weight * (1 - giou).sum() / num_regressed,
        }
