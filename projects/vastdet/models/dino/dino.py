# SPDX-License-Identifier: Apache-2.0
"""The DINO meta-architecture (Zhang et al., ICLR 2023): the parts it is made of."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import attention_settings, deformable_parts
from vastdet.detr.criterion import LossWeights, SetCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.denoising import ContrastiveDenoising
from vastdet.detr.heads import box_head, class_head, per_layer
from vastdet.detr.losses import FocalLoss
from vastdet.detr.matcher import HungarianMatcher
from vastdet.detr.query_position import BoxPosition
from vastdet.detr.query_selection import TokenSelection
from vastdet.detr.query_source import MixedQueries
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import LevelsToTokens, SetTransformer
from vastdet.layers.positions import SinePositionEncoding

# Bounds the logits of boxes, and is added to the divisors of GIoU, in the authors' code.
LOGIT_EPS = 1e-3
GIOU_EPS = 1e-6


@META_ARCH_REGISTRY.register()
class DINO(SetDetector):
    """Two-stage deformable DETR with mixed query selection and contrastive denoising."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.DINO`."""
        node = cfg.MODEL.DINO
        return {
            **deformable_parts(cfg, node),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
        }


def build_transformer(node: CfgNode) -> SetTransformer:
    """Encoder, query selection, denoising and decoder of `MODEL.DINO`."""
    width, num_layers = node.EMBED_DIM, node.NUM_DECODER_LAYERS
    attention = attention_settings(node)
    new_class_head = partial(class_head, width, node.NUM_CLASSES)
    new_box_head = partial(box_head, width)
    denoising = None
    if node.DENOISING.NUM_QUERIES:
        denoising = ContrastiveDenoising(
            width,
            node.NUM_CLASSES,
            num_queries=node.DENOISING.NUM_QUERIES,
            label_noise=node.DENOISING.LABEL_NOISE,
            box_noise=node.DENOISING.BOX_NOISE,
            eps=LOGIT_EPS,
        )
    return SetTransformer(
        to_tokens=LevelsToTokens(
            SinePositionEncoding(
                width, temperature=node.POSITION_TEMPERATURE, offset=node.POSITION_OFFSET
            ),
            embed_dim=width,
            num_levels=node.NUM_LEVELS,
        ),
        encoder=deformable_encoder(node.NUM_ENCODER_LAYERS, **attention),
        query_source=MixedQueries(
            TokenSelection(
                width, node.NUM_QUERIES, class_head=new_class_head(), box_head=new_box_head()
            ),
            width,
        ),
        denoising=denoising,
        decoder=Decoder(
            (deformable_decoder_layer(**attention) for _ in range(num_layers)),
            query_position=BoxPosition(width),
            refinement=LookForwardTwice(LOGIT_EPS),
            class_heads=per_layer(new_class_head, num_layers, shared=node.SHARE_HEADS),
            box_heads=per_layer(new_box_head, num_layers, shared=node.SHARE_HEADS),
            norm=nn.LayerNorm(width),
        ),
    )


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matcher and losses of `MODEL.DINO`."""
    return SetCriterion(
        assigner=HungarianMatcher(
            class_weight=node.MATCHER.CLASS_WEIGHT,
            l1_weight=node.MATCHER.BBOX_WEIGHT,
            giou_weight=node.MATCHER.GIOU_WEIGHT,
            giou_eps=GIOU_EPS,
        ),
        class_loss=FocalLoss(alpha=node.LOSS.FOCAL_ALPHA, gamma=node.LOSS.FOCAL_GAMMA),
        weights=LossWeights(
            classes=node.LOSS.CLASS_WEIGHT,
            bbox=node.LOSS.BBOX_WEIGHT,
            giou=node.LOSS.GIOU_WEIGHT,
        ),
        giou_eps=GIOU_EPS,
    )
