# SPDX-License-Identifier: Apache-2.0
"""The Conditional DETR meta-architecture (Meng et al., ICCV 2021): the parts it is made of."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import dense_parts, dense_settings, focal_parts
from vastdet.detr.conditional import (
    ConditionalDecoder,
    SpatialQuery,
    conditional_decoder_layers,
)
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.dense import dense_encoder
from vastdet.detr.heads import box_head, class_head
from vastdet.detr.query_source import LearnedCenters
from vastdet.detr.refinement import FixedReferences
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import MapsToTokens, SetTransformer
from vastdet.layers.positions import SinePositionEncoding

# Bounds the logits of reference points in the authors' code.
LOGIT_EPS = 1e-5


@META_ARCH_REGISTRY.register()
class ConditionalDETR(SetDetector):
    """DETR with conditional cross-attention, reference points and sigmoids of classes."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.CONDITIONAL_DETR`."""
        node = cfg.MODEL.CONDITIONAL_DETR
        return {
            **dense_parts(cfg, node),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
        }


def build_transformer(node: CfgNode) -> SetTransformer:
    """Encoder, learned queries and decoder of `MODEL.CONDITIONAL_DETR`; layers share the heads."""
    width = node.EMBED_DIM
    attention = dense_settings(node)
    return SetTransformer(
        to_tokens=MapsToTokens(SinePositionEncoding(width)),
        encoder=dense_encoder(node.NUM_ENCODER_LAYERS, **attention),
        query_source=LearnedCenters(width, node.NUM_QUERIES),
        decoder=ConditionalDecoder(
            conditional_decoder_layers(node.NUM_DECODER_LAYERS, **attention),
            spatial_query=SpatialQuery(width),
            query_position=None,
            refinement=FixedReferences(LOGIT_EPS),
            class_heads=[class_head(width, node.NUM_CLASSES)],
            box_heads=[box_head(width)],
            norm=nn.LayerNorm(width),
        ),
    )


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matcher and losses of `MODEL.CONDITIONAL_DETR`."""
    return SetCriterion(**focal_parts(node, node))
