# SPDX-License-Identifier: Apache-2.0
"""The decoder stack: layers that refine queries against the tokens, given as parts.

B images, Q queries, S tokens, C channels, L levels, N layers, K classes. Boxes are CXCYWH as shares
of the image, points their first two.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vastdet.detr.refinement import References, Refinement
from vastdet.detr.structures import LayerPredictions, Queries
from vastdet.detr.tokens import Tokens
from vastdet.layers.attention import MultiheadAttention
from vastdet.layers.ms_deform_attn import MultiScaleDeformableAttention

# Maps boxes (B, Q, 4) of the queries and their later boxes to a bias (B, H, Q, Q) of attention.
BoxRelation = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class QueryState:
    """The queries as a layer sees them; members that need more derive from it.

    Attributes:
        content: (B, Q, C).
        position: (B, Q, C), added to the content where a query looks at others.
        boxes: (B, Q, 4 or 2) reference boxes or points; only learned ones have a gradient.
        blocked: (Q, Q) bool, True where the row's query must not look at the column's, or None.
        bias: float that broadcasts to (B, H, Q, Q), added to the logits of self-attention, or None.
    """

    content: Tensor
    position: Tensor
    boxes: Tensor
    blocked: Tensor | None = None
    bias: Tensor | None = None

    @property
    def positioned(self) -> Tensor:
        """Content and position together."""
        return self.content + self.position


class QuerySelfAttention(MultiheadAttention):
    """Queries look at each other; positions count for who looks at whom, not for what is seen."""

    def forward(self, state: QueryState) -> Tensor:  # type: ignore[override]
        """(B, Q, C)."""
        query = state.positioned
        return super().forward(query, query, state.content, blocked=state.blocked, bias=state.bias)


class DeformableCrossAttention(MultiScaleDeformableAttention):
    """Queries sample the tokens about their reference boxes (Zhu et al. 2021, section 4.1)."""

    def forward(self, state: QueryState, memory: Tokens) -> Tensor:  # type: ignore[override]
        """(B, Q, C)."""
        return super().forward(
            state.positioned,
            memory.values,
            memory.level_references(state.boxes),
            memory.spatial_shapes,
            memory.level_start_index,
            memory.padding_mask,
        )


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; a residual connection and a norm after each.

    `self_attn` maps a QueryState to (B, Q, C), `cross_attn` a QueryState and the tokens.
    """

    def __init__(
        self,
        self_attn: nn.Module,
        cross_attn: nn.Module,
        ffn: nn.Module,
        *,
        embed_dim: int,
        dropout: float = 0.0,
    ) -> None:
        """`dropout` acts on the results of both attentions; the feed-forward block has its own."""
        super().__init__()
        self.self_attn = self_attn
        self.self_attn_norm = nn.LayerNorm(embed_dim)
        self.cross_attn = cross_attn
        self.cross_attn_norm = nn.LayerNorm(embed_dim)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: QueryState, memory: Tokens) -> Tensor:
        """The new content (B, Q, C)."""
        content = self.self_attn_norm(state.content + self.dropout(self.self_attn(state)))
        return self.look(replace(state, content=content), memory)

    def look(self, state: QueryState, memory: Tokens) -> Tensor:
        """The content (B, Q, C) after all that follows self-attention."""
        seen = self.dropout(self.cross_attn(state, memory))
        content = self.cross_attn_norm(state.content + seen)
        return self.ffn_norm(content + self.ffn(content))


class Decoder(nn.Module):
    """A stack of decoder layers with their prediction heads.

    The parts:
        layers: N modules such as `DecoderLayer`.
        query_position: maps reference boxes, content, the index of the layer and the tokens to the
            position (B, Q, C) of the queries; None where positions come with the queries.
        refinement: how boxes move from layer to layer.
        class_heads, box_heads: N modules, or one that all layers share.
        norm: applied to the content before the heads, not to what the next layer reads.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        *,
        query_position: nn.Module | None,
        refinement: Refinement,
        class_heads: Iterable[nn.Module],
        box_heads: Iterable[nn.Module],
        norm: nn.Module,
    ) -> None:
        """Put the parts together."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.query_position = query_position
        self.refinement = refinement
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.norm = norm
        for name, heads in (("class", self.class_heads), ("box", self.box_heads)):
            if len(heads) not in (1, len(self.layers)):
                raise ValueError(
                    f"got {len(heads)} {name} heads for {len(self.layers)} layers; expected one "
                    "that is shared, or one a layer"
                )

    def class_head(self, layer: int) -> nn.Module:
        """The class head of a layer."""
        return self.class_heads[layer % len(self.class_heads)]

    def box_head(self, layer: int) -> nn.Module:
        """The box head of a layer."""
        return self.box_heads[layer % len(self.box_heads)]

    def forward(
        self, queries: Queries, memory: Tokens, relation: BoxRelation | None = None
    ) -> LayerPredictions:
        """Predictions of all layers in training, of the last alone (N = 1) at inference.

        With a `relation`, the self-attention of each layer but the first has as its bias the
        relation of the boxes before the last layer to those after it (Hou et al. 2024, section 4).
        """
        content, start = queries.content, queries.boxes
        references = References(start, start)
        logits, boxes = [], []
        before, after = start, start
        for i, layer in enumerate(self.layers):
            state = self.query_state(queries, content, references, i, memory)
            if relation is not None and i > 0:
                state = replace(state, bias=relation(before, after))
            content = layer(state, memory)
            is_last = i == len(self.layers) - 1
            normed = self.norm(content)
            predicted, references = self.refinement.step(
                self.box_head(i), content, normed, references, is_last=is_last
            )
            before, after = after, predicted
            if self.training or is_last:
                logits.append(self.classify(i, normed, memory))
                boxes.append(predicted)
            if not is_last:
                queries, content, references = self.hand_on(queries, content, references, i)
        return LayerPredictions(
            torch.stack(logits), torch.stack(boxes), references=start, content=normed
        )

    def classify(self, layer: int, normed: Tensor, memory: Tokens) -> Tensor:
        """The logits (B, Q, K) of a layer's content; members whose heads read more override it."""
        logits: Tensor = self.class_head(layer)(normed)
        return logits

    def hand_on(
        self, queries: Queries, content: Tensor, references: References, layer: int
    ) -> tuple[Queries, Tensor, References]:
        """What the layer after number `layer` starts from; members that change it override it."""
        return queries, content, references

    def query_state(
        self,
        queries: Queries,
        content: Tensor,
        references: References,
        layer: int,
        memory: Tokens,
    ) -> QueryState:
        """What layer number `layer` reads; members that hand their layers more override it."""
        boxes = references.detached
        position = queries.position
        if self.query_position is not None:
            position = self.query_position(boxes, content, layer, memory)
        assert position is not None
        return QueryState(content, position, boxes, queries.blocked)
