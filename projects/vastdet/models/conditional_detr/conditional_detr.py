# SPDX-License-Identifier: Apache-2.0
"""The Conditional DETR meta-architecture (Meng et al., ICCV 2021): the parts it is made of."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import nn

from vastdet.detr.conditional import (
    ConditionalDecoder,
    SpatialQuery,
    conditional_decoder_layers,
)
from vastdet.detr.criterion import LossWeights, SetCriterion, focal_criterion
from vastdet.detr.dense import dense_encoder
from vastdet.detr.heads import box_head, class_head
from vastdet.detr.neck import MapProjection
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
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "neck": MapProjection(
                backbone.output_shape(), node.IN_FEATURE, embed_dim=node.EMBED_DIM
            ),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
            "num_classes": node.NUM_CLASSES,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }


def build_transformer(node: CfgNode) -> SetTransformer:
    """Encoder, learned queries and decoder of `MODEL.CONDITIONAL_DETR`; layers share the heads."""
    width = node.EMBED_DIM
    attention = {
        "embed_dim": width,
        "num_heads": node.NUM_HEADS,
        "feedforward_dim": node.FEEDFORWARD_DIM,
        "dropout": node.DROPOUT,
    }
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
    weights = LossWeights(node.CLASS_WEIGHT, node.BBOX_WEIGHT, node.GIOU_WEIGHT)
    return focal_criterion(weights, weights, alpha=node.FOCAL_ALPHA, gamma=node.FOCAL_GAMMA)
