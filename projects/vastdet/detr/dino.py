# SPDX-License-Identifier: Apache-2.0
"""DINO's transformer and criterion (Zhang et al., ICLR 2023), with its class heads as a part.

`node` holds the keys that `config_keys.add_dino_keys` adds. C channels, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from vastdet.detr.build import (
    contrastive_denoising,
    deformable_settings,
    focal_parts,
    levels_to_tokens,
)
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.denoising import ContrastiveDenoising, ContrastiveGroups
from vastdet.detr.heads import box_head, per_layer
from vastdet.detr.query_position import BoxPosition
from vastdet.detr.query_selection import TokenSelection
from vastdet.detr.query_source import MixedQueries
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.transformer import SetTransformer

# Bounds the logits of boxes, and is added to the divisors of GIoU, in the authors' code.
LOGIT_EPS = 1e-3
GIOU_EPS = 1e-6


def dino_transformer(
    node: CfgNode,
    *,
    new_class_head: Callable[[], nn.Module],
    denoising: Callable[..., ContrastiveGroups] = ContrastiveDenoising,
) -> SetTransformer:
    """Encoder, query selection, denoising and decoder.

    Args:
        node: the keys.
        new_class_head: makes a module (..., C) to K logits; called for the proposal stage, then for
            the decoder, once or once a layer.
        denoising: makes the denoising queries; takes what `ContrastiveDenoising` takes.
    """
    width, num_layers = node.EMBED_DIM, node.NUM_DECODER_LAYERS
    attention = deformable_settings(node)
    new_box_head = partial(box_head, width)
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
        denoising=contrastive_denoising(node, denoising, eps=LOGIT_EPS),
        decoder=Decoder(
            (deformable_decoder_layer(**attention) for _ in range(num_layers)),
            query_position=BoxPosition(width),
            refinement=LookForwardTwice(LOGIT_EPS),
            class_heads=per_layer(new_class_head, num_layers, shared=node.SHARE_HEADS),
            box_heads=per_layer(new_box_head, num_layers, shared=node.SHARE_HEADS),
            norm=nn.LayerNorm(width),
        ),
    )


def dino_criterion(node: CfgNode, **parts: Any) -> SetCriterion:
    """Matcher and losses; `parts` are arguments of `SetCriterion` in place of DINO's."""
    return SetCriterion(**focal_parts(node.LOSS, node.MATCHER, giou_eps=GIOU_EPS) | parts)
