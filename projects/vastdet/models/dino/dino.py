# SPDX-License-Identifier: Apache-2.0
"""The DINO meta-architecture (Zhang et al., ICLR 2023)."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY

from vastdet.detr.build import deformable_parts
from vastdet.detr.dino import dino_criterion, dino_transformer
from vastdet.detr.heads import class_head
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import SetTransformer


@META_ARCH_REGISTRY.register()
class DINO(SetDetector):
    """Two-stage deformable DETR with mixed query selection and contrastive denoising."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.DINO`."""
        node = cfg.MODEL.DINO
        return {
            **deformable_parts(cfg, node),
            "transformer": build_transformer(node),
            "criterion": dino_criterion(node),
        }


def build_transformer(node: CfgNode) -> SetTransformer:
    """Encoder, query selection, denoising and decoder of `MODEL.DINO`, with linear class heads."""
    return dino_transformer(
        node, new_class_head=partial(class_head, node.EMBED_DIM, node.NUM_CLASSES)
    )
