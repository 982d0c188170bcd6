# SPDX-License-Identifier: Apache-2.0
"""The losses of a set-prediction detector.

N layers, B images, Q queries, K classes, G slots for ground-truth boxes. Boxes are CXCYWH as shares
of the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vastdet.detr.losses import ClassLoss
from vastdet.detr.matcher import Assigner
from vastdet.detr.structures import LayerPredictions, SetPredictions, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy, generalized_iou
from vastdet.layers.distributed import mean_over_ranks
from vastdet.layers.observed_logits import DENOISING, PROPOSALS, logits_from
from vastdet.layers.precision import at_least_float32


@dataclass(frozen=True)
class LossWeights:
    """Weights of the class loss, the L1 distance and 1 - GIoU (2, 5, 2 in Deformable DETR)."""

    classes: float = 2.0
    bbox: float = 5.0
    giou: float = 2.0

    def weigh(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses `class`, `bbox`, `giou`, each times its weight."""
        weights = {"class": self.classes, "bbox": self.bbox, "giou": self.giou}
        return {name: loss * weights[name] for name, loss in losses.items()}


class SetCriterion(nn.Module):
    """Matches the predictions of every layer with the boxes, and adds up what is wrong.

    `forward` returns weighted losses `loss_class`, `loss_bbox`, `loss_giou` of the last decoder
    layer; with `_aux` the sums over the other layers, with `_enc` those of the proposals and with
    `_dn` the sums over all layers of the denoising queries. `layer_losses` has them layer by layer.
    """

    # Whether the proposal stage only tells objects from background.
    class_agnostic_proposals = False

    def __init__(
        self,
        *,
        assigner: Assigner,
        class_loss: ClassLoss,
        weights: LossWeights,
        giou_eps: float = 0.0,
        proposal_class_loss: ClassLoss | None = None,
    ) -> None:
        """Take the parts.

        Args:
            assigner: which query answers for which box.
            class_loss: of the class logits.
            weights: of the losses.
            giou_eps: added to the divisors of the GIoU loss.
            proposal_class_loss: of the proposal stage, where it is another one.
        """
        super().__init__()
        self.assigner = assigner
        self.class_loss = class_loss
        self.proposal_class_loss = proposal_class_loss or class_loss
        self.weights = weights
        self.giou_eps = giou_eps

    def forward(self, predictions: SetPredictions, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses, scalars by name; all are zero or class losses when there is no box."""
        num_boxes = self.count_boxes(targets)
        decoder, matched = self.matched_losses(predictions.decoder, targets, num_boxes)
        losses = {f"loss_{name}": layers[-1] for name, layers in decoder.items()}
        losses |= {f"loss_{name}_aux": layers[:-1].sum() for name, layers in decoder.items()}
        if predictions.encoder is not None:
            with logits_from(PROPOSALS, class_agnostic=self.class_agnostic_proposals):
                encoder = self.proposal_losses(predictions.encoder, targets, num_boxes)
            losses |= {f"loss_{name}_enc": layers.sum() for name, layers in encoder.items()}
        if predictions.denoising is not None:
            queries = predictions.denoising.queries
            layers = predictions.denoising.layers
            with logits_from(DENOISING):
                denoising = self.weights.weigh(
                    self.layer_losses(
                        layers,
                        queries.matched.expand(len(layers.logits), -1, -1),
                        targets,
                        num_boxes * queries.num_groups,
                        counted=queries.counted,
                    )
                )
            losses |= {f"loss_{name}_dn": layers.sum() for name, layers in denoising.items()}
        return losses | self.further_losses(predictions, matched[-1], targets, num_boxes)

    def further_losses(
        self, predictions: SetPredictions, matched: Tensor, targets: Targets, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Weighted losses by name of what a member predicts beside classes and boxes.

        `matched` (B, Q) is the last layer's; for the other arguments see `layer_losses`.
        """
        return {}

    def proposal_targets(self, targets: Targets) -> Targets:
        """What the proposal stage must find: the boxes with their classes."""
        return targets

    def proposal_losses(
        self, proposals: LayerPredictions, targets: Targets, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Weighted losses (1,) by name of what the proposal stage predicts."""
        losses, _ = self.matched_losses(
            proposals,
            self.proposal_targets(targets),
            num_boxes,
            class_loss=self.proposal_class_loss,
        )
        return losses

    def matched_losses(
        self,
        layers: LayerPredictions,
        targets: Targets,
        num_boxes: Tensor,
        *,
        class_loss: ClassLoss | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Assign, then weighted losses (N,) by name, and the slots (N, B, Q) assigned."""
        matched = self.assigner.assign(layers, targets)
        losses = self.layer_losses(layers, matched, targets, num_boxes, class_loss=class_loss)
        return self.weights.weigh(losses), matched

    def count_boxes(self, targets: Targets) -> Tensor:
        """The mean number of boxes a process, at least 1: what the sums are divided by."""
        count = torch.tensor(float(sum(targets.num_boxes)), device=targets.labels.device)
        return mean_over_ranks(count).clamp(min=1)

    def layer_losses(
        self,
        layers: LayerPredictions,
        matched: Tensor,
        targets: Targets,
        num_boxes: Tensor,
        *,
        counted: Tensor | None = None,
        class_loss: ClassLoss | None = None,
    ) -> dict[str, Tensor]:
        """The losses before weighting.

        Args:
            layers: predictions of N layers.
            matched: (N, B, Q) slot of the box of each query, -1 for none.
            targets: the boxes.
            num_boxes: scalar; the sums are divided by it.
            counted: (B, Q) bool, the queries that enter the class loss; None for all.
            class_loss: None for that of the decoder.

        Returns:
            `class`, `bbox` and `giou`, each (N,).
        """
        class_loss = class_loss or self.class_loss
        is_matched = matched >= 0
        slots = matched.clamp(min=0)
        image = torch.arange(slots.shape[1], device=slots.device)[:, None]
        gt_boxes = targets.boxes[image, slots]
        boxes = at_least_float32(layers.boxes)
        iou, giou = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(gt_boxes), self.giou_eps)
        labels = torch.where(is_matched, targets.labels[image, slots], -1)
        l1 = (boxes - gt_boxes).abs().sum(dim=-1)
        return {
            "class": class_loss(
                layers.logits,
                labels,
                class_loss.quality(iou, giou).detach(),
                num_boxes=num_boxes,
                counted=counted,
            ),
            "bbox": torch.where(is_matched, l1, 0.0).sum(dim=(1, 2)) / num_boxes,
            "giou": torch.where(is_matched, 1 - giou, 0.0).sum(dim=(1, 2)) / num_boxes,
        }


class ObjectnessCriterion(SetCriterion):
    """The proposal stage only tells objects from background, by the logit of class 0.

    Zhu et al. 2021, appendix A.4.
    """

    class_agnostic_proposals = True

    def proposal_targets(self, targets: Targets) -> Targets:
        """The boxes, all of class 0."""
        return targets.class_agnostic()
