# SPDX-License-Identifier: Apache-2.0
"""The RT-DETR meta-architecture (Zhao et al., CVPR 2024; v2, Lv et al. 2024): its parts."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import common_parts, contrastive_denoising, loss_weights, matcher_weights
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.decoder import Decoder, DecoderLayer, DeformableCrossAttention, QuerySelfAttention
from vastdet.detr.denoising import ContrastiveDenoising
from vastdet.detr.heads import box_head, class_head, per_layer
from vastdet.detr.losses import VarifocalLoss
from vastdet.detr.matcher import HungarianMatcher
from vastdet.detr.neck import ConvNormMapper
from vastdet.detr.query_position import BoxMLP
from vastdet.detr.query_selection import TokenSelection
from vastdet.detr.query_source import SelectedQueries
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import SetTransformer
from vastdet.layers.mlp import FeedForward
from vastdet.models.rt_detr.discrete_attention import DiscreteCrossAttention
from vastdet.models.rt_detr.hybrid_encoder import HybridEncoder, HybridTokens

CROSS_ATTENTIONS = {"bilinear": DeformableCrossAttention, "discrete": DiscreteCrossAttention}
# Bounds the logits of boxes in the authors' code.
LOGIT_EPS = 1e-5


@META_ARCH_REGISTRY.register()
class RTDETR(SetDetector):
    """Two-stage DETR with a hybrid encoder, whose best tokens are the queries."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.RT_DETR`."""
        node = cfg.MODEL.RT_DETR
        parts = common_parts(cfg, node)
        shapes = parts["backbone"].output_shape()
        return {
            **parts,
            "neck": ConvNormMapper(shapes, node.IN_FEATURES, embed_dim=node.ENCODER_DIM),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
        }


class CornerDenoising(ContrastiveDenoising):
    """An empty slot holds a point in the corner of the image, as in the authors' code."""

    # All zeros there, which go through bounded logits like every noised box.
    empty_box = LOGIT_EPS / (1 + LOGIT_EPS)


def build_transformer(node: CfgNode) -> SetTransformer:
    """Hybrid encoder, query selection, denoising and decoder of `MODEL.RT_DETR`."""
    width, num_layers = node.EMBED_DIM, node.NUM_DECODER_LAYERS
    new_class_head = partial(class_head, width, node.NUM_CLASSES)
    new_box_head = partial(box_head, width)
    denoising = contrastive_denoising(node, CornerDenoising, eps=LOGIT_EPS)
    encoder = HybridEncoder(
        embed_dim=node.ENCODER_DIM,
        num_levels=len(node.IN_FEATURES),
        num_heads=node.NUM_HEADS,
        feedforward_dim=node.ENCODER_FEEDFORWARD_DIM,
        num_layers=node.NUM_ENCODER_LAYERS,
        expansion=node.EXPANSION,
    )
    return SetTransformer(
        to_tokens=HybridTokens(encoder, width),
        encoder=nn.Identity(),
        query_source=SelectedQueries(
            TokenSelection(
                width, node.NUM_QUERIES, class_head=new_class_head(), box_head=new_box_head()
            )
        ),
        denoising=denoising,
        decoder=Decoder(
            (build_decoder_layer(node) for _ in range(num_layers)),
            query_position=BoxMLP(width),
            refinement=LookForwardTwice(LOGIT_EPS),
            class_heads=per_layer(new_class_head, num_layers, shared=False),
            box_heads=per_layer(new_box_head, num_layers, shared=False),
            norm=nn.Identity(),
        ),
    )


def build_decoder_layer(node: CfgNode) -> DecoderLayer:
    """One layer of the decoder.

    Raises:
        ValueError: SAMPLING has an unknown value.
    """
    if node.SAMPLING not in CROSS_ATTENTIONS:
        raise ValueError(
            f"MODEL.RT_DETR.SAMPLING is {node.SAMPLING!r}; expected one of {list(CROSS_ATTENTIONS)}"
        )
    width = node.EMBED_DIM
    return DecoderLayer(
        QuerySelfAttention(width, node.NUM_HEADS, dropout=node.DROPOUT),
        CROSS_ATTENTIONS[node.SAMPLING](
            width,
            num_heads=node.NUM_HEADS,
            num_levels=len(node.IN_FEATURES),
            num_points=node.NUM_POINTS,
            box_scale=node.OFFSET_SCALE,
        ),
        FeedForward(width, node.FEEDFORWARD_DIM, dropout=node.DROPOUT),
        embed_dim=width,
        dropout=node.DROPOUT,
    )


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matcher and losses of `MODEL.RT_DETR`."""
    return SetCriterion(
        assigner=HungarianMatcher(**matcher_weights(node.MATCHER)),
        class_loss=VarifocalLoss(alpha=node.LOSS.VARIFOCAL_ALPHA, gamma=node.LOSS.VARIFOCAL_GAMMA),
        weights=loss_weights(node.LOSS),
    )
