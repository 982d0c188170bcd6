# SPDX-License-Identifier: Apache-2.0
"""The Relation-DETR meta-architecture (Hou et al., ECCV 2024): the parts it is made of."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import (
    contrastive_denoising,
    deformable_parts,
    deformable_settings,
    levels_to_tokens,
    loss_weights,
    matcher_weights,
)
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.heads import box_head, class_head, per_layer
from vastdet.detr.hybrid import HybridCriterion
from vastdet.detr.losses import VarifocalLoss
from vastdet.detr.matcher import HungarianMatcher, focal_cost
from vastdet.detr.query_position import ScaledBoxPosition
from vastdet.detr.query_selection import HeadSelection, TokenSelection
from vastdet.detr.query_source import MixedQueries
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.set_detector import SetDetector
from vastdet.models.relation_detr.relation import PositionRelation
from vastdet.models.relation_detr.transformer import FusedEncoder, RelationTransformer

# Bounds the logits of boxes, and what the matcher takes logs of, in the authors' code.
LOGIT_EPS = 1e-3
COST_EPS = 1e-6


@META_ARCH_REGISTRY.register()
class RelationDETR(SetDetector):
    """DINO with position relations, a one-to-many branch and the varifocal loss."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.RELATION_DETR`."""
        node = cfg.MODEL.RELATION_DETR
        return {
            **deformable_parts(cfg, node, bias=False),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
            "size_divisibility": node.SIZE_DIVISIBILITY,
        }


def build_transformer(node: CfgNode) -> RelationTransformer:
    """Encoder, query selections, denoising, relation and decoder of `MODEL.RELATION_DETR`."""
    width, num_layers = node.EMBED_DIM, node.NUM_DECODER_LAYERS
    attention = deformable_settings(node)
    new_class_head = partial(class_head, width, node.NUM_CLASSES)
    new_box_head = partial(box_head, width)
    encoder = deformable_encoder(node.NUM_ENCODER_LAYERS, **attention)
    return RelationTransformer(
        to_tokens=levels_to_tokens(node),
        encoder=FusedEncoder(encoder.layers, width),
        query_source=MixedQueries(
            TokenSelection(
                width, node.NUM_QUERIES, class_head=new_class_head(), box_head=new_box_head()
            ),
            width,
        ),
        one_to_many_source=build_one_to_many_source(node),
        denoising=contrastive_denoising(node, eps=LOGIT_EPS),
        relation=PositionRelation(node.NUM_HEADS),
        decoder=Decoder(
            (deformable_decoder_layer(**attention) for _ in range(num_layers)),
            query_position=ScaledBoxPosition(width),
            refinement=LookForwardTwice(LOGIT_EPS),
            class_heads=per_layer(new_class_head, num_layers, shared=False),
            box_heads=per_layer(new_box_head, num_layers, shared=False),
            norm=nn.LayerNorm(width),
        ),
    )


def build_one_to_many_source(node: CfgNode) -> MixedQueries | None:
    """The queries of the one-to-many branch, if there is one."""
    if not node.ONE_TO_MANY.NUM_QUERIES:
        return None
    selection = HeadSelection(
        node.ONE_TO_MANY.NUM_QUERIES,
        class_head=class_head(node.EMBED_DIM, node.NUM_CLASSES),
        box_head=box_head(node.EMBED_DIM),
    )
    return MixedQueries(selection, node.EMBED_DIM)


def build_criterion(node: CfgNode) -> HybridCriterion:
    """Matcher and losses of `MODEL.RELATION_DETR`, the same in both branches."""
    criterion = SetCriterion(
        assigner=HungarianMatcher(
            **matcher_weights(node.MATCHER),
            class_cost=partial(focal_cost, eps=COST_EPS),
        ),
        class_loss=VarifocalLoss(alpha=node.LOSS.ALPHA, gamma=node.LOSS.GAMMA),
        weights=loss_weights(node.LOSS),
    )
    return HybridCriterion(
        criterion, num_repeats=node.ONE_TO_MANY.NUM_REPEATS, weight=node.ONE_TO_MANY.WEIGHT
    )
