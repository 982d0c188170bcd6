# SPDX-License-Identifier: Apache-2.0
"""How DETA chooses its proposals, and what its queries take from them (Ouyang-Zhang et al. 2022).

B images, L levels, S tokens, Q queries, C channels. Boxes are shares of the image.
"""

from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms
from torch import Tensor, nn

from vastdet.detr.query_selection import ObjectnessSelection, SelectedOfAll, gather_tokens
from vastdet.detr.query_source import ProposedBoxes
from vastdet.detr.structures import LayerPredictions, Queries
from vastdet.detr.tokens import Tokens
from vastdet.layers.boxes import cxcywh_to_xyxy
from vastdet.layers.precision import at_least_float32


class BalancedSelection(ObjectnessSelection):
    """Keeps the best tokens of every level, without those that repeat a better one (NMS).

    Every token predicts, in training and at inference: NMS needs the boxes.
    """

    def __init__(
        self,
        embed_dim: int,
        num_queries: int,
        *,
        class_head: nn.Module,
        box_head: nn.Module,
        num_per_level: int = 1000,
        nms_threshold: float = 0.9,
    ) -> None:
        """Build the scoring of tokens; see `ObjectnessSelection`.

        Args:
            embed_dim: C.
            num_queries: Q.
            class_head: maps (..., C) to logits, of which the first one counts.
            box_head: maps (..., C) to deltas of the proposals' logits.
            num_per_level: the best tokens of each level that NMS sees.
            nms_threshold: IoU above which the worse of two boxes of a level is dropped.
        """
        super().__init__(embed_dim, num_queries, class_head=class_head, box_head=box_head)
        self.num_per_level = num_per_level
        self.nms_threshold = nms_threshold

    def forward(self, tokens: Tokens) -> SelectedOfAll:
        """Select by the first class logit, level by level; `references` are the anchors.

        Raises:
            ValueError: there are fewer tokens than queries.
        """
        features, proposals = self.candidates(tokens)
        logits = self.class_head(features)
        boxes = (at_least_float32(self.box_head(features)) + proposals).sigmoid()
        scores = logits[..., 0].detach().float()
        corners = cxcywh_to_xyxy(boxes.detach()).clamp(0, 1)
        areas = [height * width for height, width in tokens.sizes]
        indices = torch.stack(
            [self.choose(*image, areas) for image in zip(scores, corners, strict=True)]
        )
        predictions = LayerPredictions(logits[None], boxes[None], proposals.sigmoid())
        return SelectedOfAll(indices, gather_tokens(features, indices), predictions)

    def choose(self, scores: Tensor, corners: Tensor, areas: Sequence[int]) -> Tensor:
        """The tokens that become queries of one image.

        Args:
            scores: (S,) logits.
            corners: (S, 4) XYXY.
            areas: tokens of each level.

        Returns:
            (Q,) int64, best first: of each level the best Q // L that NMS left, then the best
            others that it left; the best of all where NMS leaves fewer than Q.
        """
        num_levels = len(areas)
        level = torch.cat([scores.new_full((area,), i) for i, area in enumerate(areas)]).long()
        starts = [sum(areas[:i]) for i in range(num_levels)]
        candidates = torch.cat(
            [
                of_level.topk(min(self.num_per_level, len(of_level))).indices + start
                for of_level, start in zip(scores.split(list(areas)), starts, strict=True)
            ]
        )
        left = batched_nms(
            corners[candidates], scores[candidates], level[candidates], self.nms_threshold
        )
        kept = candidates[left]
        if len(kept) < self.num_queries:
            kept = scores.topk(self.num_queries).indices
        is_level = level[kept] == torch.arange(num_levels, device=level.device)[:, None]
        has_place = is_level & (is_level.cumsum(1) <= self.num_queries // num_levels)
        has_place = has_place.any(0)
        fills_up = (~has_place).cumsum(0) <= self.num_queries - has_place.sum()
        return kept[has_place | fills_up]


class ProposedBoxesAndFeatures(ProposedBoxes):
    """Contents also tell what the encoder saw at the proposed boxes, without gradient to it."""

    def __init__(self, embed_dim: int, selection: ObjectnessSelection) -> None:
        """`embed_dim` is C, a multiple of 4."""
        super().__init__(embed_dim, selection)
        self.feature_transform = nn.Linear(embed_dim, embed_dim)
        self.feature_norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.feature_transform.weight)
        nn.init.zeros_(self.feature_transform.bias)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """Queries at the chosen boxes, and what the proposal stage predicts."""
        selected = self.selection(memory)
        position, content = self.describe(selected.boxes, memory.values).chunk(2, dim=-1)
        seen = self.feature_norm(self.feature_transform(selected.features.detach()))
        return Queries(content + seen, selected.boxes, position=position), selected.predictions
