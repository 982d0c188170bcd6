# SPDX-License-Identifier: Apache-2.0
"""The Rank-DETR meta-architecture (Pu et al., NeurIPS 2023): the parts it is made of."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import (
    deformable_parts,
    deformable_settings,
    focal_settings,
    levels_to_tokens,
    loss_weights,
    matcher_weights,
)
from vastdet.detr.criterion import ObjectnessCriterion
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.heads import box_head, class_head
from vastdet.detr.hybrid import HybridCriterion, HybridTransformer
from vastdet.detr.losses import FocalLoss, GIoUAwareLoss
from vastdet.detr.matcher import focal_cost
from vastdet.detr.query_selection import ObjectnessSelection
from vastdet.detr.query_source import MixedProposedBoxes
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.set_detector import SetDetector
from vastdet.models.rank_detr.matching import HighOrderMatcher
from vastdet.models.rank_detr.ranking import RankAdaptiveHead, RankContent, RankingDecoder

LOGIT_EPS = 1e-3
GIOU_EPS = 1e-6


@META_ARCH_REGISTRY.register()
class RankDETR(SetDetector):
    """H-Deformable-DETR with ranked queries and with scores that tell how well a box fits."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.RANK_DETR`."""
        node = cfg.MODEL.RANK_DETR
        return {
            **deformable_parts(cfg, node),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
        }


def build_transformer(node: CfgNode) -> HybridTransformer:
    """Encoder, query selection and decoder of `MODEL.RANK_DETR`."""
    width = node.EMBED_DIM
    attention = deformable_settings(node)
    selection = ObjectnessSelection(
        width,
        node.NUM_QUERIES,
        class_head=class_head(width, node.NUM_CLASSES),
        box_head=box_head(width),
        num_training_queries=node.NUM_QUERIES + node.ONE_TO_MANY.NUM_QUERIES,
    )
    return HybridTransformer(
        to_tokens=levels_to_tokens(node),
        encoder=deformable_encoder(node.NUM_ENCODER_LAYERS, **attention),
        query_source=MixedProposedBoxes(width, selection),
        decoder=build_decoder(node, attention),
        num_one_to_one=node.NUM_QUERIES,
    )


def build_decoder(node: CfgNode, attention: dict[str, Any]) -> RankingDecoder:
    """The decoder; `attention` are the arguments of its layers."""
    width, num_layers = node.EMBED_DIM, node.NUM_DECODER_LAYERS
    num_queries = node.NUM_QUERIES + node.ONE_TO_MANY.NUM_QUERIES
    return RankingDecoder(
        (deformable_decoder_layer(**attention) for _ in range(num_layers)),
        rank_contents=(RankContent(width, num_queries) for _ in range(num_layers - 1)),
        num_one_to_one=node.NUM_QUERIES,
        query_position=None,
        refinement=LookForwardTwice(LOGIT_EPS),
        class_heads=(
            RankAdaptiveHead(class_head(width, node.NUM_CLASSES), num_queries)
            for _ in range(num_layers)
        ),
        box_heads=(box_head(width) for _ in range(num_layers)),
        norm=nn.Identity(),
    )


def build_criterion(node: CfgNode) -> HybridCriterion:
    """Matcher and losses of `MODEL.RANK_DETR`, the same in both branches.

    The proposal stage has no scores of classes that could tell of boxes: its loss is the focal one.
    """
    focal = focal_settings(node)
    criterion = ObjectnessCriterion(
        assigner=HighOrderMatcher(
            start_iteration=node.HIGH_ORDER_MATCHING.START_ITER,
            iou_power=node.HIGH_ORDER_MATCHING.IOU_POWER,
            **matcher_weights(node),
            giou_eps=GIOU_EPS,
            class_cost=partial(focal_cost, **focal),
        ),
        class_loss=GIoUAwareLoss(**focal),
        proposal_class_loss=FocalLoss(**focal),
        weights=loss_weights(node),
        giou_eps=GIOU_EPS,
    )
    return HybridCriterion(
        criterion, num_repeats=node.ONE_TO_MANY.NUM_REPEATS, weight=node.ONE_TO_MANY.WEIGHT
    )
