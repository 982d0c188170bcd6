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

from vastdet.detr.build import attention_settings, deformable_parts
from vastdet.detr.criterion import LossWeights, SetCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.dn_denoising import DNDenoising
from vastdet.detr.heads import box_head, class_head, per_layer, start_small
from vastdet.detr.losses import FocalLoss
from vastdet.detr.matcher import HungarianMatcher, focal_cost
from vastdet.detr.query_position import ScaledBoxPosition
from vastdet.detr.query_source import AnchorsWithContent
from vastdet.detr.refinement import IterativeRefinement
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import LevelsToTokens, SetTransformer
from vastdet.layers.positions import SinePositionEncoding

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
    attention = attention_settings(node)
    denoising = build_denoising(node)
    return SetTransformer(
        to_tokens=LevelsToTokens(
            SinePositionEncoding(width, temperature=10000.0, offset=-0.5),
            embed_dim=width,
            num_levels=node.NUM_LEVELS,
        ),
        encoder=deformable_encoder(node.NUM_ENCODER_LAYERS, **attention),
        query_source=AnchorsWithContent(
            width, node.NUM_QUERIES, num_indicators=0 if denoising is None else 1
        ),
        denoising=denoising,
        decoder=build_decoder(node, attention),
    )


def build_denoising(node: CfgNode) -> DNDenoising | None:
    """The denoising of DN-DETR, where `DENOISING.NUM_GROUPS` asks for groups."""
    options = node.DENOISING
    if not options.NUM_GROUPS:
        return None
    return DNDenoising(
        node.EMBED_DIM,
        node.NUM_CLASSES,
        num_groups=options.NUM_GROUPS,
        label_noise=options.LABEL_NOISE,
        box_noise=options.BOX_NOISE,
        eps=LOGIT_EPS,
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
    alpha, gamma = node.LOSS.FOCAL_ALPHA, node.LOSS.FOCAL_GAMMA
    weights = LossWeights(
        classes=node.LOSS.CLASS_WEIGHT, bbox=node.LOSS.BBOX_WEIGHT, giou=node.LOSS.GIOU_WEIGHT
    )
    matcher = HungarianMatcher(
        class_weight=node.MATCHER.CLASS_WEIGHT,
        l1_weight=node.MATCHER.BBOX_WEIGHT,
        giou_weight=node.MATCHER.GIOU_WEIGHT,
        class_cost=partial(focal_cost, alpha=alpha, gamma=gamma),
        giou_eps=GIOU_EPS,
    )
    return SetCriterion(
        assigner=matcher,
        class_loss=FocalLoss(alpha=alpha, gamma=gamma),
        weights=weights,
        giou_eps=GIOU_EPS,
    )
