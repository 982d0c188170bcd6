# SPDX-License-Identifier: Apache-2.0
"""The DAB-Deformable-DETR meta-architecture: the parts it is made of.

Liu et al., ICLR 2022 (DAB-DETR); with denoising it is the DN-Deformable-DETR of Li et al., CVPR
2022 (DN-DETR).
"""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import (
    deformable_parts,
    deformable_settings,
    dn_denoising,
    focal_parts,
    levels_to_tokens,
)
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.heads import box_head, class_head, per_layer, start_small
from vastdet.detr.query_position import ScaledBoxPosition
from vastdet.detr.query_source import AnchorsWithContent
from vastdet.detr.refinement import IterativeRefinement
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import SetTransformer

# Bounds the logits of boxes, and is added to the divisors of GIoU, in the authors' code.
LOGIT_EPS = 1e-3
GIOU_EPS = 1e-6


@META_ARCH_REGISTRY.register()
class DABDeformableDETR(SetDetector):
    """Deformable DETR whose queries are learned boxes, and in training noised ones too."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.DAB_DEFORMABLE_DETR`."""
        node = cfg.MODEL.DAB_DEFORMABLE_DETR
        return {
            **deformable_parts(cfg, node),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
        }


def build_transformer(node: CfgNode) -> SetTransformer:
    """Encoder, learned boxes, denoising and decoder of `MODEL.DAB_DEFORMABLE_DETR`."""
    width = node.EMBED_DIM
    attention = deformable_settings(node)
    denoising = dn_denoising(node, eps=LOGIT_EPS) if node.DENOISING.NUM_GROUPS else None
    return SetTransformer(
        to_tokens=levels_to_tokens(node),
        encoder=deformable_encoder(node.NUM_ENCODER_LAYERS, **attention),
        query_source=AnchorsWithContent(
            width, node.NUM_QUERIES, num_indicators=0 if denoising is None else 1
        ),
        denoising=denoising,
        decoder=build_decoder(node, attention),
    )


def build_decoder(node: CfgNode, attention: dict[str, Any]) -> Decoder:
    """Each layer has its heads; positions follow from boxes and contents."""
    num_layers = node.NUM_DECODER_LAYERS
    new_class_head = partial(class_head, node.EMBED_DIM, node.NUM_CLASSES)
    box_heads = per_layer(partial(box_head, node.EMBED_DIM), num_layers, shared=False)
    start_small(box_heads[0])
    return Decoder(
        (deformable_decoder_layer(**attention) for _ in range(num_layers)),
        query_position=ScaledBoxPosition(node.EMBED_DIM),
        refinement=IterativeRefinement(LOGIT_EPS),
        class_heads=per_layer(new_class_head, num_layers, shared=False),
        box_heads=box_heads,
        norm=nn.Identity(),
    )


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matcher and losses of `MODEL.DAB_DEFORMABLE_DETR`."""
    return SetCriterion(**focal_parts(node.LOSS, node.MATCHER, giou_eps=GIOU_EPS))
