# SPDX-License-Identifier: Apache-2.0
"""What a decoder starts from: learned queries, or boxes that the encoder proposes.

A source maps the encoded tokens to queries and to what its proposal stage predicts, or None.

B images, Q queries, C channels. Boxes are CXCYWH as shares of the image, points their first two.
"""

import math
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.detr.query_selection import HeadSelection, ObjectnessSelection, SelectedTokens
from vastdet.detr.structures import LayerPredictions, Queries
from vastdet.detr.tokens import Tokens
from vastdet.layers.mlp import xavier_mlp
from vastdet.layers.positions import sine_features
from vastdet.layers.precision import at_least_float32


class LearnedPositions(nn.Module):
    """Queries of zero content at learned positions, without reference boxes (Carion et al. 2020).

    `boxes` of the queries are (B, Q, 0): there is nothing to refer to.
    """

    def __init__(self, embed_dim: int, num_queries: int) -> None:
        """`embed_dim` is C, `num_queries` Q."""
        super().__init__()
        self.embedding = nn.Embedding(num_queries, embed_dim)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """The same queries for every image, and no proposals."""
        position = self.embedding.weight.to(memory.values.dtype)
        position = position.expand(len(memory.values), -1, -1)
        content = position.new_zeros(position.shape)
        return Queries(content, content[..., :0], position=position), None


class LearnedCenters(LearnedPositions):
    """As above, with a point that follows from the position (Meng et al. 2021, section 3.3)."""

    def __init__(self, embed_dim: int, num_queries: int) -> None:
        """`embed_dim` is C, `num_queries` Q."""
        super().__init__(embed_dim, num_queries)
        self.ref_point_head = xavier_mlp(embed_dim, embed_dim, 2, 2)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """The same queries for every image, and no proposals."""
        queries, proposals = super().forward(memory)
        points = at_least_float32(self.ref_point_head(queries.position)).sigmoid()
        return replace(queries, boxes=points), proposals


class LearnedAnchors(nn.Module):
    """Queries of zero content at learned boxes (Liu et al. 2022, DAB-DETR, section 4.2).

    `box_logits` holds the boxes before the sigmoid; positions are left to the decoder.
    """

    def __init__(self, embed_dim: int, num_queries: int) -> None:
        """`embed_dim` is C, `num_queries` Q."""
        super().__init__()
        self.embed_dim = embed_dim
        self.box_logits = nn.Embedding(num_queries, 4)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """The same queries for every image, and no proposals."""
        boxes = at_least_float32(self.box_logits.weight).sigmoid()
        boxes = boxes.expand(len(memory.values), -1, -1)
        content = memory.values.new_zeros(*boxes.shape[:2], self.embed_dim)
        return Queries(content, boxes), None


class PatternAnchors(LearnedAnchors):
    """Each box as often as there are patterns, with each of them as content (Wang et al. 2022).

    Queries are ordered by pattern, then by box. The idea is Anchor DETR's, section 4.1.
    """

    def __init__(self, embed_dim: int, num_boxes: int, num_patterns: int) -> None:
        """Q is `num_boxes` times `num_patterns`; `embed_dim` is C."""
        super().__init__(embed_dim, num_boxes)
        self.patterns = nn.Embedding(num_patterns, embed_dim)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """The same queries for every image, and no proposals."""
        queries, proposals = super().forward(memory)
        num_images, num_boxes, _ = queries.boxes.shape
        content = self.patterns.weight.repeat_interleave(num_boxes, dim=0)
        boxes = queries.boxes.repeat(1, self.patterns.num_embeddings, 1)
        return Queries(content.expand(num_images, -1, -1), boxes), proposals


class AnchorsWithContent(LearnedAnchors):
    """As above, with learned contents (DAB-Deformable-DETR, in the code of Liu et al. 2022)."""

    def __init__(self, embed_dim: int, num_queries: int, *, num_indicators: int = 0) -> None:
        """Start from random boxes and contents.

        Args:
            embed_dim: C.
            num_queries: Q.
            num_indicators: last channels of the content, which are 0 and not learned: what
                denoising marks its queries by.
        """
        super().__init__(embed_dim, num_queries)
        self.num_indicators = num_indicators
        self.content = nn.Embedding(num_queries, embed_dim - num_indicators)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """The same queries for every image, and no proposals."""
        queries, proposals = super().forward(memory)
        content = F.pad(self.content.weight, (0, self.num_indicators))
        return replace(queries, content=content.expand_as(queries.content)), proposals


class LearnedPoints(nn.Module):
    """Positions and contents are learned; a point follows from the position (Zhu et al. 2021, 4.2).

    `embedding` holds the position in its first half and the content in its second.
    """

    def __init__(self, embed_dim: int, num_queries: int) -> None:
        """`embed_dim` is C, `num_queries` Q."""
        super().__init__()
        self.embedding = nn.Embedding(num_queries, 2 * embed_dim)
        self.reference_points = nn.Linear(embed_dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """The same queries for every image, and no proposals."""
        position, content = self.embedding.weight.chunk(2, dim=-1)
        points = self.reference_points(position).sigmoid()
        position, content, points = (
            x.expand(len(memory.values), -1, -1) for x in (position, content, points)
        )
        return Queries(content, points, position=position), None


class ProposedBoxes(nn.Module):
    """Position and content follow from the boxes that the encoder proposes.

    Zhu et al. 2021, appendix A.4. Sine features of x, y, w, h in this order, where later detectors
    have y first, go through `position_transform`; its first half is the position.
    """

    def __init__(self, embed_dim: int, selection: ObjectnessSelection) -> None:
        """`embed_dim` is C, a multiple of 4."""
        super().__init__()
        self.num_features = embed_dim // 2
        self.selection = selection
        self.position_transform = nn.Linear(2 * embed_dim, 2 * embed_dim)
        self.position_norm = nn.LayerNorm(2 * embed_dim)
        nn.init.xavier_uniform_(self.position_transform.weight)
        nn.init.zeros_(self.position_transform.bias)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """Queries at the best boxes, and what the proposal stage predicts."""
        selected = self.selection(memory)
        position, content = self.describe(selected.boxes, memory.values).chunk(2, dim=-1)
        return Queries(content, selected.boxes, position=position), selected.predictions

    def describe(self, boxes: Tensor, like: Tensor) -> Tensor:
        """Boxes (B, Q, 4) to (B, Q, 2C), in the number format of `like`."""
        features = sine_features(boxes * (2 * math.pi), self.num_features, 10000.0)
        return self.position_norm(self.position_transform(features.to(like.dtype)))


class MixedProposedBoxes(ProposedBoxes):
    """Positions follow from the boxes that the encoder proposes, contents are learned.

    Mixed selection on Deformable DETR, as in H-DETR (Jia et al., CVPR 2023): there are contents
    for the queries of training; at inference the first of them serve.
    """

    def __init__(self, embed_dim: int, selection: ObjectnessSelection) -> None:
        """`embed_dim` is C, a multiple of 4."""
        super().__init__(embed_dim, selection)
        self.content = nn.Embedding(selection.num_training_queries, embed_dim)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """Queries at the best boxes, best first, and what the proposal stage predicts."""
        queries, proposals = super().forward(memory)
        content = self.content.weight[: queries.boxes.shape[1]].expand_as(queries.content)
        return replace(queries, content=content), proposals


class MixedQueries(nn.Module):
    """Boxes come from the image, contents are learned (Zhang et al. 2023, DINO, section 3.4)."""

    def __init__(self, selection: HeadSelection, embed_dim: int) -> None:
        """`embed_dim` is C; `selection` knows the number of queries."""
        super().__init__()
        self.selection = selection
        self.content = nn.Embedding(selection.num_queries, embed_dim)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """Queries at the best boxes, and what the proposal stage predicts for them."""
        return self.start_from(self.selection(memory))

    def start_from(self, selected: SelectedTokens) -> tuple[Queries, LayerPredictions]:
        """Queries at the boxes of tokens that were chosen, and what was predicted for these."""
        content = self.content.weight.expand(len(selected.boxes), -1, -1)
        return Queries(content, selected.boxes), selected.predictions


class SelectedQueries(nn.Module):
    """Boxes and contents are those of the best tokens (Zhao et al. 2024, RT-DETR, section 4.3)."""

    def __init__(self, selection: HeadSelection) -> None:
        """`selection` knows the number of queries."""
        super().__init__()
        self.selection = selection

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """Queries without a gradient, and what the proposal stage predicts for them."""
        selected = self.selection(memory)
        return Queries(selected.features.detach(), selected.boxes), selected.predictions
