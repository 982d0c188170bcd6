# SPDX-License-Identifier: Apache-2.0
"""Contrastive denoising: boxes with noise that the decoder must restore, or reject (DINO, 3.3).

B images, G slots for ground-truth boxes, R groups, P = R * 2 * G denoising queries, Q matching
queries, C channels, K classes. Boxes are CXCYWH as shares of the image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vastdet.detr.structures import DenoisingQueries, Queries, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh


@dataclass(frozen=True)
class Noise:
    """What chance decides, for each of R groups, a positive and a negative repeat, and each slot.

    Attributes:
        flip: (B, R, 2, G) bool, whether the label is replaced.
        labels: (B, R, 2, G) int64, by which.
        signs: (B, R, 2, G, 4) of -1 and 1, the way each corner coordinate moves.
        sizes: (B, R, 2, G, 4) in [0, 1), how far.
    """

    flip: Tensor
    labels: Tensor
    signs: Tensor
    sizes: Tensor


class ContrastiveDenoising(nn.Module):
    """Makes groups of noised boxes: in each, one slightly moved and one further moved a box.

    The first must be restored, the second rejected. A corner coordinate moves by up to half a side
    times `box_noise` in a positive, by half to a whole side times it in a negative.
    """

    # Every number of the box that an empty slot holds: 0.5 is a logit of zero.
    empty_box = 0.5

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        *,
        num_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        eps: float = 1e-3,
    ) -> None:
        """Take the amounts.

        Args:
            embed_dim: C.
            num_classes: K.
            num_queries: positives in all groups together; groups = num_queries // G, at least 1.
            label_noise: share of labels that are drawn anew is half of this, in [0, 1].
            box_noise: scale of the moves, 0 or more.
            eps: bounds the logits of the noised boxes.
        """
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.eps = eps
        # One row more than classes, never read here: the authors' layout of the weights.
        self.label_embedding = nn.Embedding(num_classes + 1, embed_dim)

    def forward(self, targets: Targets, num_matching: int) -> DenoisingQueries:
        """Make the queries of a batch, to go before `num_matching` others.

        A batch without any box gets P = 0 queries. The embedding takes part in the graph even
        then, so that no process of a distributed run waits for its gradient.
        """
        num_slots = max(targets.num_boxes, default=0)
        num_groups = max(self.num_queries // max(num_slots, 1), 1)
        noise = self.draw_noise(targets, num_slots, num_groups)
        filled = targets.filled[:, :num_slots]
        shape = (len(targets.num_boxes), num_groups, 2, num_slots)
        used = filled[:, None, None].expand(shape)

        labels = targets.labels[:, None, None, :num_slots].expand(shape)
        labels = torch.where(noise.flip, noise.labels, labels)
        content = self.label_embedding(labels) * used.unsqueeze(-1)
        boxes = self.add_noise(targets.boxes[:, None, None, :num_slots], noise)
        boxes = torch.where(used.unsqueeze(-1), boxes, self.empty_box)

        slots = torch.arange(num_slots, device=labels.device).expand(shape)
        is_positive = torch.tensor([True, False], device=labels.device)[:, None]
        matched = torch.where(used & is_positive, slots, -1)
        blocked = group_mask(num_groups, 2 * num_slots, num_matching, labels.device)
        queries = Queries(content.flatten(1, 3), boxes.flatten(1, 3), blocked)
        return DenoisingQueries(queries, matched.flatten(1), None, num_groups)

    def draw_noise(self, targets: Targets, num_slots: int, num_groups: int) -> Noise:
        """Draw what chance decides."""
        device = targets.labels.device
        shape = (len(targets.num_boxes), num_groups, 2, num_slots)
        return Noise(
            flip=torch.rand(shape, device=device) < self.label_noise * 0.5,
            labels=torch.randint(self.num_classes, shape, device=device),
            signs=torch.randint(2, (*shape, 4), device=device) * 2.0 - 1.0,
            sizes=torch.rand(*shape, 4, device=device),
        )

    def add_noise(self, boxes: Tensor, noise: Noise) -> Tensor:
        """Move the corners of boxes (B, 1, 1, G, 4) to noised boxes (B, R, 2, G, 4)."""
        half = boxes[..., 2:] / 2
        reach = torch.cat([half, half], dim=-1) * self.box_noise
        is_negative = torch.tensor([0.0, 1.0], device=boxes.device)[:, None, None]
        moved = cxcywh_to_xyxy(boxes) + noise.signs * (noise.sizes + is_negative) * reach
        moved = xyxy_to_cxcywh(moved.clamp(0, 1))
        return inverse_sigmoid(moved, self.eps).sigmoid()


def group_mask(num_groups: int, group_size: int, num_matching: int, device: torch.device) -> Tensor:
    """Who must not see whom: (P + Q, P + Q) bool, denoising queries first, True is blocked.

    A denoising query sees its own group and the matching queries; a matching query sees none of the
    denoising ones, which know the answer.
    """
    group = torch.arange(num_groups, device=device).repeat_interleave(group_size)
    group = torch.cat([group, group.new_full((num_matching,), num_groups)])
    return (group[:, None] != group) & (group < num_groups)


def join_queries(denoising: DenoisingQueries | None, matching: Queries) -> Queries:
    """Denoising queries, where there are any, before the matching ones."""
    if denoising is None:
        return matching
    first = denoising.queries
    return Queries(
        torch.cat([first.content.to(matching.content.dtype), matching.content], dim=1),
        torch.cat([first.boxes, matching.boxes], dim=1),
        first.blocked,
    )
