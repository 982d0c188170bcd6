# SPDX-License-Identifier: Apache-2.0
"""Detectors with a one-to-many branch under the names of their authors.

Names were read off the code bases' state dicts (HDETR/H-Deformable-DETR, LeapLabTHU/Rank-DETR).
"""

from vastdet.model_zoo.deformable_models import (
    DETREX,
    deformable_detr_transformer_pairs,
    detectron2_resnet_pairs,
    detrex_neck_pairs,
    head_pairs,
    selection_pairs,
    stack_pairs,
)
from vastdet.model_zoo.key_map import ClassRows, Converter, ObjectnessRows, Pair
from vastdet.model_zoo.torchvision_models import resnet_pairs, weight_and_bias

SOURCE = "transformer.query_source"
DECODER = "transformer.decoder"
NUM_LAYERS = 6


def h_deformable_detr_converter() -> Converter:
    """HDETR/H-Deformable-DETR with a ResNet-50: two-stage Deformable DETR, and learned contents."""
    return Converter(
        name="H-Deformable-DETR ResNet-50 (HDETR/H-Deformable-DETR)",
        config="HDeformableDETR/h_deformable_detr_R_50_12ep.yaml",
        pairs=(
            *resnet_pairs(50, "backbone.0.body.", "backbone."),
            *deformable_detr_transformer_pairs("two_stage", NUM_LAYERS, NUM_LAYERS, num_levels=4),
            Pair("query_embed.weight", f"{SOURCE}.content.weight"),
        ),
    )


def ranking_pairs(num_layers: int) -> list[Pair]:
    """What is learned for each rank, and the class heads, which hold a part of it."""
    pairs: list[Pair] = []
    for i in range(num_layers):
        head = f"{DECODER}.class_heads.{i}"
        pairs += head_pairs("class_embed", [i], f"{head}.linear")
        pairs += head_pairs("bbox_embed", [i], f"{DECODER}.box_heads.{i}")
        pairs.append(
            Pair(
                f"rank_adaptive_classhead_emb.{i}.weight",
                f"{head}.rank_logits.weight",
                classes=ClassRows(axis=1),
            )
        )
    for i in range(num_layers - 1):
        contents = f"{DECODER}.rank_contents.{i}"
        pairs.append(
            Pair(f"{DECODER}.rank_aware_content_query.{i}.weight", f"{contents}.content.weight")
        )
        pairs += weight_and_bias(f"{DECODER}.pre_racq_trans.{i}", f"{contents}.transform")
        pairs += weight_and_bias(f"{DECODER}.post_racq_trans.{i}", f"{contents}.join")
    return pairs


def rank_detr_converter() -> Converter:
    """LeapLabTHU/Rank-DETR with a ResNet-50; its seventh heads are those of the proposals."""
    return Converter(
        name="Rank-DETR ResNet-50 (LeapLabTHU/Rank-DETR)",
        config="RankDETR/rank_detr_R_50_12ep.yaml",
        pairs=(
            *detectron2_resnet_pairs(50),
            Pair("transformer.level_embeds", "transformer.to_tokens.level_embedding"),
            Pair("query_embedding.weight", f"{SOURCE}.content.weight"),
            *weight_and_bias("transformer.pos_trans", f"{SOURCE}.position_transform"),
            *weight_and_bias("transformer.pos_trans_norm", f"{SOURCE}.position_norm"),
            *detrex_neck_pairs(3, 4),
            *stack_pairs(DETREX, NUM_LAYERS, NUM_LAYERS),
            *selection_pairs(),
            *head_pairs(
                "class_embed",
                [NUM_LAYERS],
                f"{SOURCE}.selection.class_head",
                rows=ObjectnessRows(),
            ),
            *head_pairs("bbox_embed", [NUM_LAYERS], f"{SOURCE}.selection.box_head"),
            *ranking_pairs(NUM_LAYERS),
        ),
    )
