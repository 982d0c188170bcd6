# SPDX-License-Identifier: Apache-2.0
"""The DINO meta-architecture (Zhang et al., ICLR 2023): the parts it is made of."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import (
    contrastive_denoising,
    deformable_parts,
    deformable_settings,
    focal_parts,
    levels_to_tokens,
)
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.heads import box_head, class_head, per_layer
from vastdet.detr.query_position import BoxPosition
from vastdet.detr.query_selection import TokenSelection
from vastdet.detr.query_source import MixedQueries
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import SetTransformer

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
    attention = deformable_settings(node)
    new_class_head = partial(class_head, width, node.NUM_CLASSES)
    new_box_head = partial(box_head, width)
    denoising = contrastive_denoising(node, eps=LOGIT_EPS)
    return SetTransformer(
        to_tokens=levels_to_tokens(
            node, temperature=node.POSITION_TEMPERATURE, offset=node.POSITION_OFFSET
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
    return SetCriterion(**focal_parts(node.LOSS, node.MATCHER, giou_eps=GIOU_EPS))
