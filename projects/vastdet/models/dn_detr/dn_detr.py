# SPDX-License-Identifier: Apache-2.0
"""The DN-DETR meta-architecture (Li et al., CVPR 2022): the parts it is made of."""

from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone

from vastdet.detr.anchors import GIOU_EPS, LOGIT_EPS, anchor_parts, anchor_source
from vastdet.detr.criterion import LossWeights, SetCriterion, focal_criterion
from vastdet.detr.dn_denoising import DNDenoising, with_indicator
from vastdet.detr.neck import MapProjection
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.structures import LayerPredictions, Queries, SetPredictions, Targets
from vastdet.detr.tokens import Tokens
from vastdet.detr.transformer import SetTransformer


@META_ARCH_REGISTRY.register()
class DNDETR(SetDetector):
    """DAB-DETR with denoising, whose contents are embeddings of labels."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.DN_DETR`."""
        node = cfg.MODEL.DN_DETR
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "neck": MapProjection(
                backbone.output_shape(), node.IN_FEATURE, embed_dim=node.EMBED_DIM
            ),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
            "num_classes": node.NUM_CLASSES,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }


class LabelTransformer(SetTransformer):
    """Contents of matching queries are the embedding of no label, beside those of noised labels.

    B images, Q queries, C channels.
    """

    denoising: DNDenoising

    def decode(
        self,
        queries: Queries,
        memory: Tokens,
        proposals: LayerPredictions | None,
        targets: Targets | None,
    ) -> SetPredictions:
        """See `SetTransformer.decode`; the embedding is added to what the source gave (B, Q, C)."""
        no_label = with_indicator(self.denoising.label_embedding.weight[-1], 0.0)
        queries = replace(queries, content=queries.content + no_label)
        return super().decode(queries, memory, proposals, targets)


def build_transformer(node: CfgNode) -> LabelTransformer:
    """Encoder, learned boxes, denoising and decoder of `MODEL.DN_DETR`."""
    return LabelTransformer(
        query_source=anchor_source(node.EMBED_DIM, node.NUM_QUERIES, node.NUM_PATTERNS),
        denoising=DNDenoising(
            node.EMBED_DIM,
            node.NUM_CLASSES,
            num_groups=node.DENOISING.NUM_GROUPS,
            label_noise=node.DENOISING.LABEL_NOISE,
            box_noise=node.DENOISING.BOX_NOISE,
            eps=LOGIT_EPS,
        ),
        **anchor_parts(
            num_classes=node.NUM_CLASSES,
            num_encoder_layers=node.NUM_ENCODER_LAYERS,
            num_decoder_layers=node.NUM_DECODER_LAYERS,
            embed_dim=node.EMBED_DIM,
            num_heads=node.NUM_HEADS,
            feedforward_dim=node.FEEDFORWARD_DIM,
            dropout=node.DROPOUT,
            temperature=node.POSITION_TEMPERATURE,
        ),
    )


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matcher and losses of `MODEL.DN_DETR`."""
    loss, cost = node.LOSS, node.MATCHER
    return focal_criterion(
        LossWeights(loss.CLASS_WEIGHT, loss.BBOX_WEIGHT, loss.GIOU_WEIGHT),
        LossWeights(cost.CLASS_WEIGHT, cost.BBOX_WEIGHT, cost.GIOU_WEIGHT),
        alpha=loss.FOCAL_ALPHA,
        gamma=loss.FOCAL_GAMMA,
        giou_eps=GIOU_EPS,
    )
