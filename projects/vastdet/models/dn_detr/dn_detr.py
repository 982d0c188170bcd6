# SPDX-License-Identifier: Apache-2.0
"""The DN-DETR meta-architecture (Li et al., CVPR 2022): the parts it is made of."""

from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY

from vastdet.detr.anchors import GIOU_EPS, LOGIT_EPS, anchor_parts, anchor_source
from vastdet.detr.build import dense_parts, dn_denoising, focal_parts
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.dn_denoising import DNDenoising, with_indicator
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
        return {
            **dense_parts(cfg, node),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
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
        query_source=anchor_source(node),
        denoising=dn_denoising(node, eps=LOGIT_EPS),
        **anchor_parts(node),
    )


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matcher and losses of `MODEL.DN_DETR`."""
    return SetCriterion(**focal_parts(node.LOSS, node.MATCHER, giou_eps=GIOU_EPS))
