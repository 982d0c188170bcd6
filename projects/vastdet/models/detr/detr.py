# SPDX-License-Identifier: Apache-2.0
"""The DETR meta-architecture (Carion et al., ECCV 2020): the parts it is made of."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import dense_parts, dense_settings, loss_weights, matcher_weights
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.dense import dense_decoder_layer, dense_encoder
from vastdet.detr.detections import best_queries
from vastdet.detr.losses import CrossEntropyLoss
from vastdet.detr.matcher import HungarianMatcher, softmax_cost
from vastdet.detr.query_source import LearnedPositions
from vastdet.detr.refinement import DirectBoxes
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import MapsToTokens, SetTransformer
from vastdet.layers.mlp import MLP
from vastdet.layers.positions import SinePositionEncoding


@META_ARCH_REGISTRY.register()
class DETR(SetDetector):
    """Set prediction with dense attention over one map, and a softmax with "no object"."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.DETR`."""
        node = cfg.MODEL.DETR
        return detector_parts(cfg, node) | {"criterion": build_criterion(node)}


def detector_parts(cfg: CfgNode, node: CfgNode) -> dict[str, Any]:
    """The arguments of `SetDetector` but for the criterion, from the keys of `node`."""
    return dense_parts(cfg, node) | {
        "transformer": build_transformer(node),
        "select_detections": best_queries,
    }


def build_transformer(node: CfgNode) -> SetTransformer:
    """Encoder, learned queries and decoder of `MODEL.DETR`; all layers share the heads."""
    width = node.EMBED_DIM
    attention = dense_settings(node)
    return SetTransformer(
        to_tokens=MapsToTokens(SinePositionEncoding(width)),
        encoder=dense_encoder(node.NUM_ENCODER_LAYERS, **attention),
        query_source=LearnedPositions(width, node.NUM_QUERIES),
        decoder=Decoder(
            (dense_decoder_layer(**attention) for _ in range(node.NUM_DECODER_LAYERS)),
            query_position=None,
            refinement=DirectBoxes(),
            class_heads=[nn.Linear(width, node.NUM_CLASSES + 1)],
            box_heads=[MLP(width, width, 4, 3)],
            norm=nn.LayerNorm(width),
        ),
    )


def build_criterion(
    node: CfgNode, criterion: Callable[..., SetCriterion] = SetCriterion, **further: Any
) -> SetCriterion:
    """Matcher and losses of `MODEL.DETR`; `further` arguments are for another criterion."""
    return criterion(
        assigner=HungarianMatcher(**matcher_weights(node), class_cost=softmax_cost),
        class_loss=CrossEntropyLoss(no_object_weight=node.NO_OBJECT_WEIGHT),
        weights=loss_weights(node),
        **further,
    )
