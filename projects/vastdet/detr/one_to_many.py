# SPDX-License-Identifier: Apache-2.0
"""Several queries for a box, by the overlap of what they start from (Ouyang-Zhang et al. 2022).

*NMS Strikes Back* (DETA), section 3: as in anchor-based detectors, a query answers for a box that
its reference overlaps. The references of a proposal stage are its anchors, those of a decoder the
proposals that it starts from.

B images, N layers, Q queries, G slots for ground-truth boxes, P pairs: the largest number of pairs
in an image of the batch, at least 1. Boxes are CXCYWH as shares of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from vastdet.detr.criterion import LossWeights, ObjectnessCriterion
from vastdet.detr.losses import ClassLoss
from vastdet.detr.matcher import Assigner
from vastdet.detr.structures import LayerPredictions, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy
from vastdet.layers.precision import at_least_float32


@dataclass(frozen=True)
class MatchedPairs:
    """Queries and the boxes that they answer for; a query may stand in several pairs.

    Attributes:
        queries: (B, P) int64, 0 in empty places.
        slots: (B, P) int64, -1 in empty places.
    """

    queries: Tensor
    slots: Tensor

    @classmethod
    def padded(cls, pairs: Sequence[tuple[Tensor, Tensor]]) -> "MatchedPairs":
        """From the queries and slots, (P,) each, of every image."""
        num_pairs = max(1, *(len(queries) for queries, _ in pairs)) if pairs else 1
        device = pairs[0][0].device if pairs else None
        empty = torch.zeros(len(pairs), num_pairs, dtype=torch.int64, device=device)
        made = cls(empty, empty - 1)
        for i, (queries, slots) in enumerate(pairs):
            made.queries[i, : len(queries)] = queries
            made.slots[i, : len(slots)] = slots
        return made

    def slot_of_each(self, num_queries: int) -> Tensor:
        """(B, Q): the slot of every query, the last of several, -1 for none."""
        none = self.slots.new_full((len(self.slots), num_queries), -1)
        return none.scatter_reduce(1, self.queries, self.slots, "amax")

    def of(self, layers: LayerPredictions) -> LayerPredictions:
        """The predictions of the paired queries, (N, B, P, ...)."""
        image = torch.arange(len(self.queries), device=self.queries.device)[:, None]
        return LayerPredictions(
            layers.logits[:, image, self.queries], layers.boxes[:, image, self.queries]
        )


class OverlapAssigner(Assigner):
    """Pairs each box with the few queries whose references overlap it most.

    `matcher` calls references positive by their IoU with the boxes, each for one box. A box with c
    positives is paired with the `max_per_box`, at most c, references of all that overlap it most:
    what is positive for one box may so be paired with another, or with both. The layers share the
    pairs.
    """

    def __init__(self, matcher: Matcher, *, max_positives: int, max_per_box: int = 4) -> None:
        """Take the parts.

        Args:
            matcher: Detectron2's, whose label 1 is positive. With `allow_low_quality_matches` the
                best references of every box are positive, however little they overlap.
            max_positives: of an image; if there are more, so many are drawn at random.
            max_per_box: pairs of a box.
        """
        self.matcher = matcher
        self.max_positives = max_positives
        self.max_per_box = max_per_box

    def assign(self, predictions: LayerPredictions, targets: Targets) -> Tensor:
        """See `Assigner.assign`; of several boxes a query gets the last."""
        num_layers, _, num_queries, _ = predictions.logits.shape
        matched = self.pairs(predictions, targets).slot_of_each(num_queries)
        return matched.expand(num_layers, -1, -1)

    @torch.no_grad()
    def pairs(self, predictions: LayerPredictions, targets: Targets) -> MatchedPairs:
        """The pairs of each image, those of the first box first.

        Raises:
            ValueError: the predictions have no reference boxes.
        """
        references = predictions.references
        if references is None or references.shape[-1] != 4:
            raise ValueError(
                "queries are paired with boxes by their reference boxes (B, Q, 4), but the "
                f"references are {None if references is None else tuple(references.shape)}; give "
                "such queries a HungarianMatcher"
            )
        starts = cxcywh_to_xyxy(at_least_float32(references))
        boxes = cxcywh_to_xyxy(at_least_float32(targets.boxes))
        found = []
        for i, count in enumerate(targets.num_boxes):
            found.append(
                self.pairs_of_image(pairwise_iou(Boxes(boxes[i, :count]), Boxes(starts[i])))
            )
        return MatchedPairs.padded(found)

    def pairs_of_image(self, ious: Tensor) -> tuple[Tensor, Tensor]:
        """IoUs (boxes, Q) to queries and slots, (P,) each."""
        num_boxes, num_queries = ious.shape
        slots = torch.arange(num_boxes, device=ious.device)
        if num_boxes == 0:
            return slots, slots
        matched, labels = self.matcher(ious)
        positive = (labels == 1).nonzero().squeeze(1)
        if len(positive) > self.max_positives:
            drawn = torch.randperm(len(positive), device=ious.device)[: self.max_positives]
            positive = positive[drawn]
        num_positives = torch.bincount(matched[positive], minlength=num_boxes)
        best = ious.topk(min(self.max_per_box, num_queries), dim=1).indices
        is_pair = torch.arange(best.shape[1], device=ious.device) < num_positives[:, None]
        return best[is_pair], slots[:, None].expand_as(best)[is_pair]


class OneToManyCriterion(ObjectnessCriterion):
    """The losses of pairs, in both stages.

    Every pair counts in the losses of boxes; in the class loss a query counts once, also one that
    stands in no pair. Sums are divided by the number of boxes, not of pairs.
    """

    assigner: OverlapAssigner

    def __init__(
        self,
        *,
        proposal_assigner: OverlapAssigner,
        assigner: OverlapAssigner,
        class_loss: ClassLoss,
        weights: LossWeights,
    ) -> None:
        """`proposal_assigner` is that of the proposal stage, `assigner` that of the decoder."""
        super().__init__(assigner=assigner, class_loss=class_loss, weights=weights)
        self.proposal_assigner = proposal_assigner

    def matched_losses(
        self,
        layers: LayerPredictions,
        targets: Targets,
        num_boxes: Tensor,
        *,
        class_loss: ClassLoss | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Pair the queries of the decoder, then weighted losses, and one slot of each query."""
        pairs = self.assigner.pairs(layers, targets)
        return self.pair_losses(pairs, layers, targets, num_boxes, class_loss=class_loss)

    def proposal_losses(
        self, proposals: LayerPredictions, targets: Targets, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Pair the tokens, then weighted losses (1,) by name."""
        pairs = self.proposal_assigner.pairs(proposals, targets)
        losses, _ = self.pair_losses(
            pairs,
            proposals,
            self.proposal_targets(targets),
            num_boxes,
            class_loss=self.proposal_class_loss,
        )
        return losses

    def pair_losses(
        self,
        pairs: MatchedPairs,
        layers: LayerPredictions,
        targets: Targets,
        num_boxes: Tensor,
        *,
        class_loss: ClassLoss | None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Weighted losses (N,) by name, and the slots (N, B, Q) of the class loss."""
        num_layers, _, num_queries, _ = layers.logits.shape
        matched = pairs.slot_of_each(num_queries).expand(num_layers, -1, -1)
        of_pairs = self.layer_losses(
            pairs.of(layers), pairs.slots.expand(num_layers, -1, -1), targets, num_boxes
        )
        of_queries = self.layer_losses(layers, matched, targets, num_boxes, class_loss=class_loss)
        return self.weights.weigh({**of_pairs, "class": of_queries["class"]}), matched
