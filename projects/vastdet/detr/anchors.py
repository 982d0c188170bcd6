# SPDX-License-Identifier: Apache-2.0
"""The transformer of dense detectors whose queries are boxes (Liu et al. 2022, DAB-DETR)."""

from torch import nn

from vastdet.detr.conditional import (
    ConditionalDecoder,
    SizedSpatialQuery,
    conditional_decoder_layers,
)
from vastdet.detr.dense import dense_encoder_layers
from vastdet.detr.encoder import PositionScalingEncoder
from vastdet.detr.heads import box_head, class_head
from vastdet.detr.query_position import AnchorPosition
from vastdet.detr.query_source import LearnedAnchors, PatternAnchors
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.transformer import MapsToTokens
from vastdet.layers.positions import SinePositionEncoding

# Bounds the logits of boxes, and is added to the divisors of GIoU, in the authors' code.
LOGIT_EPS = 1e-3
GIOU_EPS = 1e-6


def anchor_parts(
    *,
    num_classes: int,
    num_encoder_layers: int,
    num_decoder_layers: int,
    embed_dim: int,
    num_heads: int,
    feedforward_dim: int,
    dropout: float,
    temperature: float,
) -> dict[str, nn.Module]:
    """What a `SetTransformer` needs beside a source of queries with boxes.

    Dense attention with PReLU in the feed-forward blocks; all layers share the heads. The authors'
    code lets the loss of a layer reach the deltas of the layer before: what DINO calls look forward
    twice.

    Args:
        num_classes: K.
        num_encoder_layers: of dense self-attention, whose positions the contents scale.
        num_decoder_layers: of conditional attention.
        embed_dim: C.
        num_heads: H.
        feedforward_dim: channels inside of the feed-forward blocks.
        dropout: everywhere.
        temperature: of the position encoding of the cells.
    """
    attention = {
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "feedforward_dim": feedforward_dim,
        "dropout": dropout,
        "activation": nn.PReLU,
    }
    return {
        "to_tokens": MapsToTokens(SinePositionEncoding(embed_dim, temperature=temperature)),
        "encoder": PositionScalingEncoder(
            dense_encoder_layers(num_encoder_layers, **attention), embed_dim=embed_dim
        ),
        "decoder": ConditionalDecoder(
            conditional_decoder_layers(num_decoder_layers, **attention),
            spatial_query=SizedSpatialQuery(embed_dim),
            query_position=AnchorPosition(embed_dim),
            refinement=LookForwardTwice(LOGIT_EPS),
            class_heads=[class_head(embed_dim, num_classes)],
            box_heads=[box_head(embed_dim)],
            norm=nn.LayerNorm(embed_dim),
        ),
    }


def anchor_source(embed_dim: int, num_queries: int, num_patterns: int) -> LearnedAnchors:
    """Learned boxes, each with `num_patterns` learned contents; 0 for one of zeros."""
    if num_patterns:
        return PatternAnchors(embed_dim, num_queries, num_patterns)
    return LearnedAnchors(embed_dim, num_queries)
