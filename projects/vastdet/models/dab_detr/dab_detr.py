# SPDX-License-Identifier: Apache-2.0
"""The DAB-DETR meta-architecture (Liu et al., ICLR 2022): the parts it is made of."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY

from vastdet.detr.anchors import GIOU_EPS, anchor_parts, anchor_source
from vastdet.detr.build import dense_parts, focal_parts
from vastdet.detr.criterion import SetCriterion
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import SetTransformer


@META_ARCH_REGISTRY.register()
class DABDETR(SetDetector):
    """Conditional DETR whose queries are learned boxes, moved by each decoder layer."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.DAB_DETR`."""
        node = cfg.MODEL.DAB_DETR
        return {
            **dense_parts(cfg, node),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
        }


def build_transformer(node: CfgNode) -> SetTransformer:
    """Encoder, learned boxes and decoder of `MODEL.DAB_DETR`."""
    return SetTransformer(query_source=anchor_source(node), **anchor_parts(node))


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matcher and losses of `MODEL.DAB_DETR`."""
    return SetCriterion(**focal_parts(node.LOSS, node.MATCHER, giou_eps=GIOU_EPS))
