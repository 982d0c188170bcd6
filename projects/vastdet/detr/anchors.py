# SPDX-License-Identifier: Apache-2.0
"""The transformer of dense detectors whose queries are boxes (Liu et al. 2022, DAB-DETR)."""

from detectron2.config import CfgNode
from torch import nn

from vastdet.detr.build import dense_settings
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


def anchor_parts(node: CfgNode) -> dict[str, nn.Module]:
    """What a `SetTransformer` needs beside a source of queries with boxes; `node` is the member's.

    Dense attention with PReLU in the feed-forward blocks; all layers share the heads. The authors'
    code lets the loss of a layer reach the deltas of the layer before: what DINO calls look forward
    twice.
    """
    width = node.EMBED_DIM
    attention = dense_settings(node) | {"activation": nn.PReLU}
    encoding = SinePositionEncoding(width, temperature=node.POSITION_TEMPERATURE)
    return {
        "to_tokens": MapsToTokens(encoding),
        "encoder": PositionScalingEncoder(
            dense_encoder_layers(node.NUM_ENCODER_LAYERS, **attention), embed_dim=width
        ),
        "decoder": ConditionalDecoder(
            conditional_decoder_layers(node.NUM_DECODER_LAYERS, **attention),
            spatial_query=SizedSpatialQuery(width),
            query_position=AnchorPosition(width),
            refinement=LookForwardTwice(LOGIT_EPS),
            class_heads=[class_head(width, node.NUM_CLASSES)],
            box_heads=[box_head(width)],
            norm=nn.LayerNorm(width),
        ),
    }


def anchor_source(node: CfgNode) -> LearnedAnchors:
    """Learned boxes, each with `NUM_PATTERNS` learned contents; 0 for one of zeros."""
    if node.NUM_PATTERNS:
        return PatternAnchors(node.EMBED_DIM, node.NUM_QUERIES, node.NUM_PATTERNS)
    return LearnedAnchors(node.EMBED_DIM, node.NUM_QUERIES)
