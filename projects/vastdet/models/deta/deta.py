# SPDX-License-Identifier: Apache-2.0
"""The DETA meta-architecture (Ouyang-Zhang et al. 2022): the parts it is made of."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.matcher import Matcher
from torch import nn

from vastdet.detr.build import (
    class_loss,
    deformable_parts,
    deformable_settings,
    levels_to_tokens,
    loss_weights,
)
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.detections import pairs_after_nms
from vastdet.detr.heads import box_head, class_head, per_layer
from vastdet.detr.one_to_many import OneToManyCriterion, OverlapAssigner
from vastdet.detr.refinement import IterativeRefinement
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import SetTransformer
from vastdet.models.deta.proposals import BalancedSelection, ProposedBoxesAndFeatures

LOGIT_EPS = 1e-5


@META_ARCH_REGISTRY.register()
class DETA(SetDetector):
    """Two-stage Deformable DETR that learns and infers as anchor-based detectors do."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.DETA`."""
        node = cfg.MODEL.DETA
        return {
            **deformable_parts(cfg, node),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
            "select_detections": partial(pairs_after_nms, nms_threshold=node.NMS_THRESH_TEST),
        }


def build_transformer(node: CfgNode) -> SetTransformer:
    """Encoder, query source and decoder of `MODEL.DETA`."""
    width, num_layers = node.EMBED_DIM, node.NUM_DECODER_LAYERS
    attention = deformable_settings(node)
    new_class_head = partial(class_head, width, node.NUM_CLASSES)
    new_box_head = partial(box_head, width)
    selection = BalancedSelection(
        width,
        node.NUM_QUERIES,
        class_head=new_class_head(),
        box_head=new_box_head(),
        num_per_level=node.PROPOSALS.NUM_PER_LEVEL,
        nms_threshold=node.PROPOSALS.NMS_THRESH,
    )
    return SetTransformer(
        to_tokens=levels_to_tokens(node),
        encoder=deformable_encoder(node.NUM_ENCODER_LAYERS, **attention),
        query_source=ProposedBoxesAndFeatures(width, selection),
        decoder=Decoder(
            (deformable_decoder_layer(**attention) for _ in range(num_layers)),
            query_position=None,
            refinement=IterativeRefinement(LOGIT_EPS),
            class_heads=per_layer(new_class_head, num_layers, shared=False),
            box_heads=per_layer(new_box_head, num_layers, shared=False),
            norm=nn.Identity(),
        ),
    )


def build_criterion(node: CfgNode) -> OneToManyCriterion:
    """Assigners of both stages and losses of `MODEL.DETA`."""
    max_per_box = node.ASSIGNER.MAX_PER_BOX
    return OneToManyCriterion(
        proposal_assigner=OverlapAssigner(
            Matcher([node.PROPOSALS.IOU_THRESHOLD], [0, 1], allow_low_quality_matches=True),
            max_positives=node.PROPOSALS.MAX_POSITIVES,
            max_per_box=max_per_box,
        ),
        assigner=OverlapAssigner(
            Matcher([node.ASSIGNER.IOU_THRESHOLD], [0, 1], allow_low_quality_matches=True),
            max_positives=int(node.NUM_QUERIES * node.ASSIGNER.POSITIVE_FRACTION),
            max_per_box=max_per_box,
        ),
        class_loss=class_loss(node),
        weights=loss_weights(node),
    )
