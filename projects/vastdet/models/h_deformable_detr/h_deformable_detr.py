# SPDX-License-Identifier: Apache-2.0
"""The H-Deformable-DETR meta-architecture (Jia et al., CVPR 2023): the parts it is made of."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import attention_settings, deformable_parts
from vastdet.detr.criterion import LossWeights, ObjectnessCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.heads import box_head, class_head, per_layer
from vastdet.detr.hybrid import HybridCriterion, HybridTransformer
from vastdet.detr.losses import FocalLoss
from vastdet.detr.matcher import HungarianMatcher, focal_cost
from vastdet.detr.query_selection import ObjectnessSelection
from vastdet.detr.query_source import MixedProposedBoxes
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import LevelsToTokens
from vastdet.layers.positions import SinePositionEncoding

LOGIT_EPS = 1e-5


@META_ARCH_REGISTRY.register()
class HDeformableDETR(SetDetector):
    """Two-stage Deformable DETR whose training has a one-to-many branch as well."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.H_DEFORMABLE_DETR`."""
        node = cfg.MODEL.H_DEFORMABLE_DETR
        return {
            **deformable_parts(cfg, node),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
        }


def build_transformer(node: CfgNode) -> HybridTransformer:
    """Encoder, query selection and decoder of `MODEL.H_DEFORMABLE_DETR`."""
    width, num_layers = node.EMBED_DIM, node.NUM_DECODER_LAYERS
    attention = attention_settings(node)
    new_class_head = partial(class_head, width, node.NUM_CLASSES)
    new_box_head = partial(box_head, width)
    selection = ObjectnessSelection(
        width,
        node.NUM_QUERIES,
        class_head=new_class_head(),
        box_head=new_box_head(),
        num_training_queries=node.NUM_QUERIES + node.ONE_TO_MANY.NUM_QUERIES,
    )
    return HybridTransformer(
        to_tokens=LevelsToTokens(
            SinePositionEncoding(width, temperature=10000.0, offset=-0.5),
            embed_dim=width,
            num_levels=node.NUM_LEVELS,
        ),
        encoder=deformable_encoder(node.NUM_ENCODER_LAYERS, **attention),
        query_source=MixedProposedBoxes(width, selection),
        decoder=Decoder(
            (deformable_decoder_layer(**attention) for _ in range(num_layers)),
            query_position=None,
            refinement=LookForwardTwice(LOGIT_EPS),
            class_heads=per_layer(new_class_head, num_layers, shared=False),
            box_heads=per_layer(new_box_head, num_layers, shared=False),
            norm=nn.Identity(),
        ),
        num_one_to_one=node.NUM_QUERIES,
    )


def build_criterion(node: CfgNode) -> HybridCriterion:
    """Matcher and losses of `MODEL.H_DEFORMABLE_DETR`, the same in both branches."""
    alpha, gamma = node.FOCAL_ALPHA, node.FOCAL_GAMMA
    weights = LossWeights(classes=node.CLASS_WEIGHT, bbox=node.BBOX_WEIGHT, giou=node.GIOU_WEIGHT)
    criterion = ObjectnessCriterion(
        assigner=HungarianMatcher(
            class_weight=weights.classes,
            l1_weight=weights.bbox,
            giou_weight=weights.giou,
            class_cost=partial(focal_cost, alpha=alpha, gamma=gamma),
        ),
        class_loss=FocalLoss(alpha=alpha, gamma=gamma),
        weights=weights,
    )
    return HybridCriterion(
        criterion, num_repeats=node.ONE_TO_MANY.NUM_REPEATS, weight=node.ONE_TO_MANY.WEIGHT
    )
