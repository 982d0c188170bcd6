# SPDX-License-Identifier: Apache-2.0
"""DAB-Deformable-DETR and DN-Deformable-DETR under the names of the authors.

Names were read off the state dict of IDEA-Research/DN-DETR.
"""

from vastdet.model_zoo.deformable_models import (
    HEAD_PREFIXES,
    ORIGINAL,
    head_pairs,
    mlp_pairs,
    original_neck_pairs,
    stack_pairs,
)
from vastdet.model_zoo.key_map import ClassRows, Converter, Pair
from vastdet.model_zoo.torchvision_models import resnet_pairs


def dab_deformable_transformer_pairs(
    num_encoder: int, num_decoder: int, *, num_levels: int
) -> list[Pair]:
    """All but the backbone and the denoising."""
    pairs = [
        Pair("transformer.level_embed", "transformer.to_tokens.level_embedding"),
        Pair("tgt_embed.weight", "transformer.query_source.content.weight"),
        Pair("refpoint_embed.weight", "transformer.query_source.box_logits.weight"),
        *original_neck_pairs(num_levels),
        *stack_pairs(ORIGINAL, num_encoder, num_decoder),
    ]
    for part in ("ref_point_head", "query_scale"):
        ours = f"transformer.decoder.query_position.{part}"
        pairs += mlp_pairs(f"transformer.decoder.{part}", ours, 2)
    for i in range(num_decoder):
        # The decoder of the authors knows the heads of boxes, which it moves them by.
        class_head, box_head = (
            f"transformer.decoder.{kind}_heads.{i}" for kind in ("class", "box")
        )
        pairs += head_pairs("class_embed", [i], class_head, prefixes=HEAD_PREFIXES[:1])
        pairs += head_pairs("bbox_embed", [i], box_head)
    return pairs


def dn_deformable_transformer_pairs(
    num_encoder: int, num_decoder: int, *, num_levels: int
) -> list[Pair]:
    """All but the backbone of a model with denoising."""
    return [
        Pair(
            "label_enc.weight",
            "transformer.denoising.label_embedding.weight",
            classes=ClassRows(after=1),
        ),
        *dab_deformable_transformer_pairs(num_encoder, num_decoder, num_levels=num_levels),
    ]


def dn_deformable_converter() -> Converter:
    """IDEA-Research/DN-DETR's dn_dab_deformable_detr with a ResNet-50."""
    return Converter(
        name="DN-Deformable-DETR ResNet-50 (IDEA-Research/DN-DETR)",
        config="DABDeformableDETR/dn_deformable_detr_R_50_50ep.yaml",
        pairs=(
            *resnet_pairs(50, "backbone.0.body.", "backbone."),
            *dn_deformable_transformer_pairs(6, 6, num_levels=4),
        ),
    )


def dab_deformable_converter() -> Converter:
    """IDEA-Research/DAB-DETR's dab_deformable_detr with a ResNet-50."""
    return Converter(
        name="DAB-Deformable-DETR ResNet-50 (IDEA-Research/DAB-DETR)",
        config="DABDeformableDETR/dab_deformable_detr_R_50_50ep.yaml",
        pairs=(
            *resnet_pairs(50, "backbone.0.body.", "backbone."),
            *dab_deformable_transformer_pairs(6, 6, num_levels=4),
        ),
    )
