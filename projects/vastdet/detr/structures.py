# SPDX-License-Identifier: Apache-2.0
"""What the parts of a set-prediction detector hand to each other.

B images, L levels, S tokens of all levels, C channels, Q queries, N layers, K classes, G slots for
ground-truth boxes: the largest number of boxes in an image of the batch, at least 1. Boxes are
CXCYWH as shares of the image without its padding, in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.structures import Instances
from torch import Tensor

from vastdet.layers.boxes import xyxy_to_cxcywh

# What an empty slot holds: the box of the image's size.
EMPTY_BOX = (0.5, 0.5, 1.0, 1.0)


@dataclass(frozen=True)
class Targets:
    """The ground truth of a batch, padded to one length so that no step waits for the device.

    Attributes:
        labels: (B, G) int64 in [0, K), 0 in empty slots.
        boxes: (B, G, 4), a box of the image's size in empty slots.
        num_boxes: how many slots of each image are filled, the first ones.
        names: what an error calls each image.
    """

    labels: Tensor
    boxes: Tensor
    num_boxes: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def from_instances(
        cls, instances: Sequence[Instances], names: Sequence[str], device: torch.device
    ) -> "Targets":
        """Take `gt_boxes` (XYXY pixels of the network input) and `gt_classes` of each image."""
        counts = tuple(len(x) for x in instances)
        num_slots = max(1, *counts) if counts else 1
        labels = torch.zeros(len(counts), num_slots, dtype=torch.int64)
        boxes = torch.tensor(EMPTY_BOX).repeat(len(counts), num_slots, 1)
        for i, (image, count) in enumerate(zip(instances, counts, strict=True)):
            height, width = image.image_size
            size = torch.tensor([width, height, width, height], dtype=torch.float32)
            labels[i, :count] = image.gt_classes.cpu()
            boxes[i, :count] = xyxy_to_cxcywh(image.gt_boxes.tensor.cpu() / size)
        return cls(labels.to(device), boxes.to(device), counts, tuple(names))

    @property
    def filled(self) -> Tensor:
        """(B, G) bool, True in the slots that hold a box."""
        counts = torch.tensor(self.num_boxes, device=self.labels.device)
        return torch.arange(self.labels.shape[1], device=self.labels.device) < counts[:, None]

    def class_agnostic(self) -> "Targets":
        """The same boxes, all of class 0: what a proposal stage learns."""
        return replace(self, labels=torch.zeros_like(self.labels))

    def repeated(self, times: int) -> "Targets":
        """Every box `times` times, image by image: all boxes, then all again.

        Raises:
            ValueError: `times` is less than 1.
        """
        if times < 1:
            raise ValueError(f"boxes can be repeated once or more often, got {times} times")
        device = self.labels.device
        counts = torch.tensor(self.num_boxes, device=device)[:, None]
        slots = torch.arange(times * self.labels.shape[1], device=device)
        is_filled = slots < times * counts
        source = slots % counts.clamp(min=1)
        image = torch.arange(len(counts), device=device)[:, None]
        empty = self.boxes.new_tensor(EMPTY_BOX)
        return replace(
            self,
            labels=torch.where(is_filled, self.labels[image, source], 0),
            boxes=torch.where(is_filled[..., None], self.boxes[image, source], empty),
            num_boxes=tuple(times * count for count in self.num_boxes),
        )


@dataclass(frozen=True)
class LayerPredictions:
    """What N layers predict, the last layer last.

    Attributes:
        logits: (N, B, Q, K).
        boxes: (N, B, Q, 4).
        references: (B, Q, 4 or less), the boxes or points that the first layer starts from; those
            of a proposal stage are what the tokens propose before any learning. None where nobody
            asks for them.
        content: (B, Q, C), what the heads of a decoder's last layer read, for further heads.
    """

    logits: Tensor
    boxes: Tensor
    references: Tensor | None = None
    content: Tensor | None = None

    def queries(self, start: int, stop: int | None = None) -> "LayerPredictions":
        """Those of some of the queries."""
        references, content = (
            None if x is None else x[:, start:stop] for x in (self.references, self.content)
        )
        return LayerPredictions(
            self.logits[:, :, start:stop], self.boxes[:, :, start:stop], references, content
        )


@dataclass(frozen=True)
class Queries:
    """What a decoder starts from.

    Attributes:
        content: (B, Q, C).
        boxes: (B, Q, 4) reference boxes, or (B, Q, 2) points; with a gradient only where they
            are learned.
        blocked: (Q, Q) bool, True where the row's query must not look at the column's; None where
            all may look at all.
        position: (B, Q, C), where it does not follow from the boxes.
    """

    content: Tensor
    boxes: Tensor
    blocked: Tensor | None = None
    position: Tensor | None = None


@dataclass(frozen=True)
class DenoisingQueries:
    """Queries made from noised ground truth (Li et al., CVPR 2022).

    Attributes:
        queries: content, boxes, and who must not see whom among denoising and matching queries;
            `queries.blocked` covers both, denoising first.
        matched: (B, P) int64, the slot of the box that a query must restore, -1 for none.
        counted: (B, P) bool, the queries that enter the class loss; None for all.
        num_groups: how many times each box is there to be restored.
    """

    queries: Queries
    matched: Tensor
    counted: Tensor | None
    num_groups: int


@dataclass(frozen=True)
class DenoisingPredictions:
    """What the decoder made of denoising queries."""

    layers: LayerPredictions
    queries: DenoisingQueries


@dataclass(frozen=True)
class SetPredictions:
    """Everything that a criterion sees.

    Attributes:
        decoder: all decoder layers in training, the last alone at inference.
        encoder: predictions of the proposal stage (N = 1), where there is one.
        denoising: in training, where there is denoising.
        hybrid: in training, what the queries of a one-to-many branch predict, where there is one.
    """

    decoder: LayerPredictions
    encoder: LayerPredictions | None = None
    denoising: DenoisingPredictions | None = None
    hybrid: "SetPredictions | None" = None
