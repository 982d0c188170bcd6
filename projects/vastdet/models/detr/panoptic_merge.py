# SPDX-License-Identifier: Apache-2.0
"""From the masks of queries to one segment a pixel (Carion et al. 2020, section 4.2).

Q queries, K classes, N segments, H x W pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Detectron2's form: ids (H, W) int32, 0 where nothing was found, and a record for each other id.
PanopticSegmentation = tuple[Tensor, list[dict[str, Any]]]


@dataclass(frozen=True)
class PanopticMerger:
    """Gives each pixel to the query with the highest mask logit there.

    Queries of "no object" or of a low score have no part in it. Masks of one kind of stuff are
    one segment. Segments of a few pixels go, and the others share their pixels.

    Attributes:
        num_thing_classes: classes below it are things, the others stuff.
        score_threshold: least probability of a query's class.
        max_small_area: segments of at most as many pixels go.
    """

    num_thing_classes: int
    score_threshold: float = 0.85
    max_small_area: int = 4

    def select(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N,) that take part, their scores and classes; logits are (Q, K + 1)."""
        scores, classes = logits.float().softmax(dim=-1).max(dim=-1)
        is_object = classes < logits.shape[-1] - 1
        queries = (is_object & (scores > self.score_threshold)).nonzero()[:, 0]
        return queries, scores[queries], classes[queries]

    def merge(
        self, scores: Tensor, classes: Tensor, masks: Tensor, output_size: tuple[int, int]
    ) -> PanopticSegmentation:
        """Merge the masks of the queries that take part.

        Args:
            scores: (N,).
            classes: (N,).
            masks: (N, H, W) logits.
            output_size: (height, width) of the segmentation; the nearest pixel counts.

        Returns:
            Ids and records with `id`, `isthing`, `category_id` (the class), `score`, `area`.
        """
        owners = self.owners(masks, first_of_stuff(classes, self.num_thing_classes), output_size)
        while len(masks):
            area = owners.flatten().bincount(minlength=len(masks))
            large = area > self.max_small_area
            if large.all():
                break
            scores, classes, masks = scores[large], classes[large], masks[large]
            # Second masks of a kind of stuff own nothing, so they are gone by now.
            alone = torch.arange(len(masks), device=masks.device)
            owners = self.owners(masks, alone, output_size)
        if not len(masks):
            return torch.zeros(output_size, dtype=torch.int32, device=masks.device), []
        records = [
            {
                "id": i + 1,
                "isthing": category < self.num_thing_classes,
                "category_id": category,
                "score": score,
                "area": pixels,
            }
            for i, (category, score, pixels) in enumerate(
                zip(classes.tolist(), scores.tolist(), area.tolist(), strict=True)
            )
        ]
        return owners.int() + 1, records

    def owners(self, masks: Tensor, stands_for: Tensor, size: tuple[int, int]) -> Tensor:
        """(height, width) int64: which mask owns a pixel, by the one that it stands for."""
        if not len(masks):
            return torch.zeros(size, dtype=torch.int64, device=masks.device)
        strongest = stands_for[masks.argmax(dim=0)]
        resized = F.interpolate(strongest[None, None].float(), size=size, mode="nearest-exact")
        return resized[0, 0].long()


def first_of_stuff(classes: Tensor, num_thing_classes: int) -> Tensor:
    """(N,): each segment's own index, of stuff that of the first segment of its class."""
    index = torch.arange(len(classes), device=classes.device)
    same = classes[:, None] == classes
    is_stuff = classes >= num_thing_classes
    first = torch.where(same, index, len(classes)).amin(dim=1) if len(classes) else index
    return torch.where(is_stuff, first, index)
