# SPDX-License-Identifier: Apache-2.0
"""Conditional DETR, DAB-DETR and DN-DETR under the names of the authors.

Atten4Vis/ConditionalDETR, IDEA-Research/DAB-DETR, IDEA-Research/DN-DETR.
"""

from functools import partial

from vastdet.model_zoo.deformable_models import NUM_BOX_LAYERS, mlp_pairs
from vastdet.model_zoo.dense_models import DECODER_PARTS, ENCODER_PARTS, attention_pairs
from vastdet.model_zoo.key_map import ClassRows, Converter, Pair
from vastdet.model_zoo.torchvision_models import resnet_pairs, weight_and_bias

# Our name -> theirs of the projections of a decoder layer, which they keep beside the attentions.
PROJECTIONS = {
    "self_attn.query_content": "sa_qcontent_proj",
    "self_attn.query_position": "sa_qpos_proj",
    "self_attn.key_content": "sa_kcontent_proj",
    "self_attn.key_position": "sa_kpos_proj",
    "self_attn.value": "sa_v_proj",
    "self_attn.out_proj": "self_attn.out_proj",
    "cross_attn.query_content": "ca_qcontent_proj",
    "cross_attn.query_spatial": "ca_qpos_sine_proj",
    "cross_attn.key_content": "ca_kcontent_proj",
    "cross_attn.key_position": "ca_kpos_proj",
    "cross_attn.value": "ca_v_proj",
    "cross_attn.out_proj": "cross_attn.out_proj",
}
FIRST_PROJECTIONS = {"cross_attn.query_position": "ca_qpos_proj"}


def conditional_stack_pairs(num_encoder: int, num_decoder: int) -> list[Pair]:
    """Every tensor of the layers, and what both models have beside them in the decoder."""
    pairs: list[Pair] = []
    for i in range(num_encoder):
        prefix = f"transformer.encoder.layers.{i}"
        pairs += attention_pairs(f"{prefix}.self_attn", f"{prefix}.self_attn")
        for ours, theirs in ENCODER_PARTS.items():
            pairs += weight_and_bias(f"{prefix}.{theirs}", f"{prefix}.{ours}")
    for i in range(num_decoder):
        prefix = f"transformer.decoder.layers.{i}"
        parts = PROJECTIONS | DECODER_PARTS | (FIRST_PROJECTIONS if i == 0 else {})
        for ours, theirs in parts.items():
            pairs += weight_and_bias(f"{prefix}.{theirs}", f"{prefix}.{ours}")
    decoder = "transformer.decoder"
    return [
        *weight_and_bias("input_proj", "neck.conv"),
        *pairs,
        *weight_and_bias(f"{decoder}.norm", f"{decoder}.norm"),
        *mlp_pairs(f"{decoder}.query_scale", f"{decoder}.spatial_query.scale", 2),
        *weight_and_bias("class_embed", f"{decoder}.class_heads.0", classes=ClassRows()),
    ]


def conditional_detr_transformer_pairs(num_encoder: int, num_decoder: int) -> list[Pair]:
    """All but the backbone of Conditional DETR."""
    source = "transformer.query_source"
    return [
        Pair("query_embed.weight", f"{source}.embedding.weight"),
        *mlp_pairs("transformer.decoder.ref_point_head", f"{source}.ref_point_head", 2),
        *conditional_stack_pairs(num_encoder, num_decoder),
        *mlp_pairs("bbox_embed", "transformer.decoder.box_heads.0", NUM_BOX_LAYERS),
    ]


def dab_detr_transformer_pairs(
    num_encoder: int, num_decoder: int, *, has_patterns: bool = False
) -> list[Pair]:
    """All but the backbone of DAB-DETR, whose decoder knows the box head a second time."""
    decoder, source = "transformer.decoder", "transformer.query_source"
    layers = [("encoder", i) for i in range(num_encoder)]
    layers += [("decoder", i) for i in range(num_decoder)]
    activations = [f"transformer.{stack}.layers.{i}" for stack, i in layers]
    boxes = mlp_pairs("bbox_embed", f"{decoder}.box_heads.0", NUM_BOX_LAYERS)
    patterns = [Pair("transformer.patterns.weight", f"{source}.patterns.weight")]
    return [
        Pair("refpoint_embed.weight", f"{source}.box_logits.weight"),
        *(patterns if has_patterns else []),
        *conditional_stack_pairs(num_encoder, num_decoder),
        *(Pair(f"{x}.activation.weight", f"{x}.ffn.activation.weight") for x in activations),
        *mlp_pairs("transformer.encoder.query_scale", "transformer.encoder.position_scale", 2),
        *mlp_pairs(f"{decoder}.ref_point_head", f"{decoder}.query_position.ref_point_head", 2),
        *mlp_pairs(f"{decoder}.ref_anchor_head", f"{decoder}.spatial_query.size_head", 2),
        *(Pair(x.source, x.detectron2, copies=(f"{decoder}.{x.source}",)) for x in boxes),
    ]


def conditional_detr_converter(backbone: str = "R_50") -> Converter:
    """Atten4Vis/ConditionalDETR; `backbone` is R_50 or R_101, with _DC5 the dilated one."""
    return Converter(
        name=f"Conditional DETR {backbone} (Atten4Vis/ConditionalDETR)",
        config=f"ConditionalDETR/conditional_detr_{backbone}_50ep.yaml",
        pairs=(*backbone_pairs(backbone), *conditional_detr_transformer_pairs(6, 6)),
    )


def dab_detr_converter(variant: str = "R_50") -> Converter:
    """IDEA-Research/DAB-DETR's dab_detr; `variant` is that of our config's name."""
    has_patterns = variant.endswith("_3pat")
    return Converter(
        name=f"DAB-DETR {variant} (IDEA-Research/DAB-DETR)",
        config=f"DABDETR/dab_detr_{variant}_50ep.yaml",
        pairs=(
            *backbone_pairs(variant),
            *dab_detr_transformer_pairs(6, 6, has_patterns=has_patterns),
        ),
    )


def dn_detr_converter(variant: str = "R_50") -> Converter:
    """IDEA-Research/DN-DETR's dn_dab_detr; `variant` is that of our config's name.

    The authors released models with patterns of 12 epochs, those without of 50.
    """
    has_patterns = variant.endswith("_3pat")
    return Converter(
        name=f"DN-DETR {variant} (IDEA-Research/DN-DETR)",
        config=f"DNDETR/dn_detr_{variant}_{12 if has_patterns else 50}ep.yaml",
        pairs=(
            *backbone_pairs(variant),
            *dab_detr_transformer_pairs(6, 6, has_patterns=has_patterns),
            Pair(
                "label_enc.weight",
                "transformer.denoising.label_embedding.weight",
                classes=ClassRows(after=1),
            ),
        ),
    )


def backbone_pairs(variant: str) -> list[Pair]:
    """The ResNet of a variant whose name starts with R_ and its depth."""
    return list(resnet_pairs(int(variant.split("_")[1]), "backbone.0.body.", "backbone."))


CONVERTERS = {
    f"{name}_{variant}": partial(make, variant)
    for name, make, variants in (
        (
            "conditional_detr",
            conditional_detr_converter,
            ("R_50", "R_101", "R_50_DC5", "R_101_DC5"),
        ),
        ("dab_detr", dab_detr_converter, ("R_50", "R_50_3pat", "R_50_DC5", "R_50_DC5_3pat")),
        ("dn_detr", dn_detr_converter, ("R_50", "R_50_DC5", "R_50_DC5_3pat", "R_101_DC5_3pat")),
    )
    for variant in variants
}
