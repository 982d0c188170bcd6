# SPDX-License-Identifier: Apache-2.0
"""Relation-DETR under the names of the authors (xiuqhou/Relation-DETR)."""

from vastdet.model_zoo.deformable_models import (
    NUM_BOX_LAYERS,
    ORIGINAL,
    dino_decoder_pairs,
    mlp_pairs,
    selection_pairs,
    stack_pairs,
    with_unused_row,
)
from vastdet.model_zoo.key_map import ClassRows, Converter, Layout, Pair
from vastdet.model_zoo.torchvision_models import resnet_pairs, weight_and_bias


def relation_neck_pairs(num_levels: int) -> list[Pair]:
    """The level projections: convolutions without bias, and norms."""
    pairs: list[Pair] = []
    for i in range(num_levels):
        pairs.append(Pair(f"neck.convs.{i}.0.weight", f"neck.convs.{i}.weight"))
        pairs += weight_and_bias(f"neck.convs.{i}.1", f"neck.norms.{i}")
    return pairs


def relation_head_pairs(
    their_class: str, their_box: str, our_class: str, our_box: str
) -> list[Pair]:
    """A class and a box head, each under its names."""
    return [
        *weight_and_bias(their_class, our_class, classes=ClassRows()),
        *mlp_pairs(their_box, our_box, NUM_BOX_LAYERS),
    ]


def relation_detr_transformer_pairs(
    num_encoder: int, num_decoder: int, *, num_levels: int
) -> list[Pair]:
    """All but the backbone."""
    decoder = "transformer.decoder"
    pairs = [
        Pair("transformer.level_embeds", "transformer.to_tokens.level_embedding"),
        Pair(
            "denoising_generator.label_encoder.weight",
            "transformer.denoising.label_embedding.weight",
            Layout(with_unused_row, lambda t: t[:-1]),
            classes=ClassRows(),
        ),
        *relation_neck_pairs(num_levels),
        *stack_pairs(ORIGINAL, num_encoder, num_decoder),
        *selection_pairs(),
        *dino_decoder_pairs(),
        *mlp_pairs(f"{decoder}.query_scale", f"{decoder}.query_position.query_scale", 2),
        *weight_and_bias(
            f"{decoder}.position_relation_embedding.pos_proj.0", "transformer.relation.projection"
        ),
    ]
    fusion = "transformer.encoder.memory_fusion"
    for theirs, ours in (("0", "fusion.layers.0"), ("2", "fusion.layers.1"), ("3", "fusion_norm")):
        pairs += weight_and_bias(f"{fusion}.{theirs}", f"transformer.encoder.{ours}")
    for source, content, branch in (
        ("query_source", "tgt_embed", "encoder"),
        ("one_to_many_source", "hybrid_tgt_embed", "hybrid"),
    ):
        pairs.append(Pair(f"transformer.{content}.weight", f"transformer.{source}.content.weight"))
        pairs += relation_head_pairs(
            f"transformer.{branch}_class_head",
            f"transformer.{branch}_bbox_head",
            f"transformer.{source}.selection.class_head",
            f"transformer.{source}.selection.box_head",
        )
    for i in range(num_decoder):
        pairs += relation_head_pairs(
            f"{decoder}.class_head.{i}",
            f"{decoder}.bbox_head.{i}",
            f"{decoder}.class_heads.{i}",
            f"{decoder}.box_heads.{i}",
        )
    return pairs


def relation_detr_converter(*, depth: int = 50) -> Converter:
    """xiuqhou/Relation-DETR with a ResNet; the class names that its files carry are left out."""
    return Converter(
        name=f"Relation-DETR ResNet-{depth} (xiuqhou/Relation-DETR)",
        config=f"RelationDETR/relation_detr_R_{depth}_12ep.yaml",
        pairs=(
            *resnet_pairs(depth, "backbone.", "backbone."),
            *relation_detr_transformer_pairs(6, 6, num_levels=4),
        ),
        ignored=("num_batches_tracked", "_classes_"),
    )
