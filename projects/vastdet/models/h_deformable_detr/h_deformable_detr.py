# SPDX-License-Identifier: Apache-2.0
"""The H-Deformable-DETR meta-architecture (Jia et al., CVPR 2023): the parts it is made of."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import deformable_parts, deformable_settings, focal_parts, levels_to_tokens
from vastdet.detr.criterion import ObjectnessCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.heads import box_head, class_head, per_layer
from vastdet.detr.hybrid import HybridCriterion, HybridTransformer
from vastdet.detr.query_selection import ObjectnessSelection
from vastdet.detr.query_source import MixedProposedBoxes
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.set_detector import SetDetector

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
    attention = deformable_settings(node)
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
        to_tokens=levels_to_tokens(node),
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
    criterion = ObjectnessCriterion(**focal_parts(node, node))
    return HybridCriterion(
        criterion, num_repeats=node.ONE_TO_MANY.NUM_REPEATS, weight=node.ONE_TO_MANY.WEIGHT
    )
