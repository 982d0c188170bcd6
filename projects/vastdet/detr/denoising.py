# SPDX-License-Identifier: Apache-2.0
"""Denoising: boxes with noise that the decoder must restore (DN-DETR), or reject (DINO, 3.3).

B images, G slots for ground-truth boxes, R groups, V versions of each box in a group, P = R * V * G
denoising queries, Q matching queries, C channels, K classes. Boxes are CXCYWH as shares of the
image.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vastdet.detr.structures import DenoisingQueries, Queries, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh


@dataclass(frozen=True)
class Noise:
    """What chance decides, for each group, version and slot.

    Attributes:
        flip: (B, R, V, G) bool, whether the label is replaced.
        labels: (B, R, V, G) int64, by which.
        moves: (B, R, V, G, 4), how far each number of a box moves, as shares of its reach.
    """

    flip: Tensor
    labels: Tensor
    moves: Tensor


class LabelContent(nn.Module, ABC):
    """What the content of a denoising query is made of."""

    @abstractmethod
    def num_labels(self, label_features: Tensor | None) -> int:
        """How many labels there are to draw from."""

    @abstractmethod
    def forward(self, labels: Tensor, label_features: Tensor | None = None) -> Tensor:
        """Labels (...) to contents (..., C); `label_features` as in `Denoising.forward`."""


class LabelEmbedding(nn.Embedding, LabelContent):
    """A table of K + 1 contents; the last is no label of a box."""

    def num_labels(self, label_features: Tensor | None) -> int:
        """K."""
        return self.num_embeddings - 1

    def forward(self, labels: Tensor, label_features: Tensor | None = None) -> Tensor:
        """Labels (...) to contents (..., C)."""
        contents: Tensor = nn.Embedding.forward(self, labels)
        return contents


class Denoising(nn.Module, ABC):
    """Makes groups of noised boxes: in each, the first version of a box must be restored.

    A member says what the versions are, how many groups there are and how boxes move.
    """

    num_versions: int  # V
    # Every number of the box that an empty slot holds: 0.5 is a logit of zero.
    empty_box = 0.5

    def __init__(
        self,
        label_embedding: LabelContent,
        *,
        flip_probability: float,
        box_noise: float,
        eps: float,
    ) -> None:
        """Take the amounts.

        Args:
            label_embedding: makes contents of labels.
            flip_probability: share of the labels that are drawn anew, in [0, 1].
            box_noise: scale of the moves, 0 or more.
            eps: bounds the logits of the noised boxes.
        """
        super().__init__()
        self.label_embedding = label_embedding
        self.flip_probability = flip_probability
        self.box_noise = box_noise
        self.eps = eps

    @abstractmethod
    def count_groups(self, num_slots: int) -> int:
        """R, at least 1, where the fullest image has `num_slots` boxes."""

    @abstractmethod
    def draw_moves(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """`Noise.moves` of a shape (B, R, V, G)."""

    @abstractmethod
    def move(self, boxes: Tensor, moves: Tensor) -> Tensor:
        """Boxes (B, 1, 1, G, 4), moved by `Noise.moves`, to (B, R, V, G, 4) within [0, 1]."""

    def embed(self, labels: Tensor, label_features: Tensor | None) -> Tensor:
        """Labels (...) to contents (..., C)."""
        contents: Tensor = self.label_embedding(labels, label_features)
        return contents

    def counted(self, used: Tensor) -> Tensor | None:
        """See `DenoisingQueries.counted`; `used` (B, P) is True where a query holds a box."""
        return used

    def forward(
        self, targets: Targets, num_matching: int, label_features: Tensor | None = None
    ) -> DenoisingQueries:
        """Make the queries of a batch, to go before `num_matching` others.

        A batch without any box gets P = 0 queries. The embedding takes part in the graph even
        then, so that no process of a distributed run waits for its gradient. `label_features`
        (V, D) describe every label, for members that make contents of them.
        """
        num_slots = max(targets.num_boxes, default=0)
        num_groups = self.count_groups(num_slots)
        noise = self.draw_noise(targets, num_slots, num_groups, label_features)
        filled = targets.filled[:, :num_slots]
        shape = (len(targets.num_boxes), num_groups, self.num_versions, num_slots)
        used = filled[:, None, None].expand(shape)

        labels = targets.labels[:, None, None, :num_slots].expand(shape)
        labels = torch.where(noise.flip, noise.labels, labels)
        content = self.embed(labels, label_features) * used.unsqueeze(-1)
        boxes = self.move(targets.boxes[:, None, None, :num_slots], noise.moves)
        boxes = inverse_sigmoid(boxes, self.eps).sigmoid()
        boxes = torch.where(used.unsqueeze(-1), boxes, self.empty_box)

        slots = torch.arange(num_slots, device=labels.device).expand(shape)
        is_first = torch.arange(self.num_versions, device=labels.device)[:, None] == 0
        matched = torch.where(used & is_first, slots, -1)
        blocked = group_mask(num_groups, self.num_versions * num_slots, num_matching, labels.device)
        queries = Queries(content.flatten(1, 3), boxes.flatten(1, 3), blocked)
        return DenoisingQueries(
            queries, matched.flatten(1), self.counted(used.flatten(1)), num_groups
        )

    def draw_noise(
        self,
        targets: Targets,
        num_slots: int,
        num_groups: int,
        label_features: Tensor | None = None,
    ) -> Noise:
        """Draw what chance decides."""
        device = targets.labels.device
        shape = (len(targets.num_boxes), num_groups, self.num_versions, num_slots)
        num_labels = self.label_embedding.num_labels(label_features)
        return Noise(
            flip=torch.rand(shape, device=device) < self.flip_probability,
            labels=torch.randint(num_labels, shape, device=device),
            moves=self.draw_moves(shape, device),
        )


class ContrastiveGroups(Denoising):
    """Each box has two versions: one slightly moved, to be restored, one further, to be rejected.

    A corner coordinate moves by up to half a side times `box_noise` in a positive, by half to a
    whole side times it in a negative.
    """

    num_versions = 2

    def __init__(
        self,
        label_embedding: LabelContent,
        *,
        num_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        eps: float = 1e-3,
    ) -> None:
        """Take the amounts.

        Args:
            label_embedding: makes contents of labels.
            num_queries: positives in all groups together; groups = num_queries // G, at least 1.
            label_noise: share of labels that are drawn anew is half of this, in [0, 1].
            box_noise: scale of the moves, 0 or more.
            eps: bounds the logits of the noised boxes.
        """
        super().__init__(
            label_embedding,
            flip_probability=label_noise * 0.5,
            box_noise=box_noise,
            eps=eps,
        )
        self.num_queries = num_queries

    def count_groups(self, num_slots: int) -> int:
        """As many as keep the number of positives below `num_queries`, at least 1."""
        return max(self.num_queries // max(num_slots, 1), 1)

    def counted(self, used: Tensor) -> Tensor | None:
        """All queries: negatives and empty slots are background."""
        return None

    def draw_moves(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """In [-1, 1] for positives; negatives move by 1 to 2 either way."""
        signs = torch.randint(2, (*shape, 4), device=device) * 2.0 - 1.0
        sizes = torch.rand(*shape, 4, device=device)
        return signs * (sizes + torch.tensor([0.0, 1.0], device=device)[:, None, None])

    def move(self, boxes: Tensor, moves: Tensor) -> Tensor:
        """Move the corners; the reach is half a side."""
        half = boxes[..., 2:] / 2
        reach = torch.cat([half, half], dim=-1) * self.box_noise
        return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + moves * reach).clamp(0, 1))


class ContrastiveDenoising(ContrastiveGroups):
    """As above, with a learned content for each class (Zhang et al. 2023, DINO, section 3.3)."""

    def __init__(self, embed_dim: int, num_classes: int, **amounts: Any) -> None:
        """`embed_dim` is C, `num_classes` K; for the amounts see `ContrastiveGroups`."""
        # One row more than classes, never read here: the authors' layout of the weights.
        super().__init__(LabelEmbedding(num_classes + 1, embed_dim), **amounts)


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
