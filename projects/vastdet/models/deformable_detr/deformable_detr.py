# SPDX-License-Identifier: Apache-2.0
"""The Deformable DETR meta-architecture (Zhu et al., ICLR 2021): the parts it is made of."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from vastdet.detr.build import deformable_parts, deformable_settings, focal_parts, levels_to_tokens
from vastdet.detr.criterion import ObjectnessCriterion, SetCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer, deformable_encoder
from vastdet.detr.heads import box_head, class_head, per_layer, start_small
from vastdet.detr.query_selection import ObjectnessSelection
from vastdet.detr.query_source import LearnedPoints, ProposedBoxes
from vastdet.detr.refinement import FixedReferences, IterativeRefinement, Refinement
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.transformer import SetTransformer

VARIANTS = ("plain", "refined", "two_stage")
LOGIT_EPS = 1e-5


@META_ARCH_REGISTRY.register()
class DeformableDETR(SetDetector):
    """Set prediction with multi-scale deformable attention in encoder and decoder."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `SetDetector`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.DEFORMABLE_DETR`."""
        node = cfg.MODEL.DEFORMABLE_DETR
        return {
            **deformable_parts(cfg, node),
            "transformer": build_transformer(node),
            "criterion": build_criterion(node),
        }


def build_transformer(node: CfgNode) -> SetTransformer:
    """Encoder, query source and decoder of `MODEL.DEFORMABLE_DETR`.

    Raises:
        ValueError: VARIANT has an unknown value.
    """
    if node.VARIANT not in VARIANTS:
        raise ValueError(
            f"MODEL.DEFORMABLE_DETR.VARIANT is {node.VARIANT!r}; expected one of {VARIANTS}"
        )
    attention = deformable_settings(node)
    return SetTransformer(
        to_tokens=levels_to_tokens(node),
        encoder=deformable_encoder(node.NUM_ENCODER_LAYERS, **attention),
        query_source=build_query_source(node),
        decoder=build_decoder(node, attention),
    )


def build_query_source(node: CfgNode) -> nn.Module:
    """Proposals of the encoder in the two-stage variant, learned points otherwise."""
    if node.VARIANT != "two_stage":
        return LearnedPoints(node.EMBED_DIM, node.NUM_QUERIES)
    selection = ObjectnessSelection(
        node.EMBED_DIM,
        node.NUM_QUERIES,
        class_head=class_head(node.EMBED_DIM, node.NUM_CLASSES),
        box_head=box_head(node.EMBED_DIM),
    )
    return ProposedBoxes(node.EMBED_DIM, selection)


def build_decoder(node: CfgNode, attention: dict[str, Any]) -> Decoder:
    """The decoder; its layers share the heads where boxes are not refined, as the authors' do."""
    num_layers = node.NUM_DECODER_LAYERS
    is_plain = node.VARIANT == "plain"
    refinement: Refinement = FixedReferences(LOGIT_EPS)
    if not is_plain:
        refinement = IterativeRefinement(LOGIT_EPS)
    new_class_head = partial(class_head, node.EMBED_DIM, node.NUM_CLASSES)
    box_heads = per_layer(partial(box_head, node.EMBED_DIM), num_layers, shared=is_plain)
    if node.VARIANT != "two_stage":
        start_small(box_heads[0])
    return Decoder(
        (deformable_decoder_layer(**attention) for _ in range(num_layers)),
        query_position=None,
        refinement=refinement,
        class_heads=per_layer(new_class_head, num_layers, shared=is_plain),
        box_heads=box_heads,
        norm=nn.Identity(),
    )


def build_criterion(node: CfgNode) -> SetCriterion:
    """Matcher and losses of `MODEL.DEFORMABLE_DETR`."""
    return ObjectnessCriterion(**focal_parts(node, node))
