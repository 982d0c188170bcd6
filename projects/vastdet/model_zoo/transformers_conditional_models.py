# SPDX-License-Identifier: Apache-2.0
"""Conditional DETR and DAB-DETR under the names of Hugging Face transformers (5.23 and older).

Their layers keep projections of contents and of places apart. Names were read off the modules;
tests/tools/test_convert_checkpoint.py compares the outputs with ours.
"""

from vastdet.model_zoo.deformable_models import NUM_BOX_LAYERS, mlp_pairs
from vastdet.model_zoo.key_map import ClassRows, Converter, Pair
from vastdet.model_zoo.torchvision_models import weight_and_bias
from vastdet.model_zoo.transformers_models import (
    FEEDFORWARD,
    NUM_LAYERS,
    OLDER,
    attention_pairs,
    backbone_pairs,
    with_older_names,
)
from vastdet.model_zoo.twins import transformers_conditional_detr, transformers_dab_detr

# Our name of a projection in a decoder layer -> theirs.
CONDITIONAL_SELF = {
    "query_content": "q_content_proj",
    "query_position": "q_pos_proj",
    "key_content": "k_content_proj",
    "key_position": "k_pos_proj",
    "value": "v_proj",
}
CONDITIONAL_CROSS = {"query_spatial": "q_pos_sine_proj", **CONDITIONAL_SELF}
DAB_SELF = {
    "query_content": "query_content_proj",
    "query_position": "query_pos_proj",
    "key_content": "key_content_proj",
    "key_position": "key_pos_proj",
    "value": "value_proj",
}
DAB_CROSS = {"query_spatial": "query_pos_sine_proj", **DAB_SELF}
# Before transformers 5 the projections of Conditional DETR stood in the layer itself.
CONDITIONAL_OLDER = (
    *(
        (f".{attention}.{new}.", f".{short}_{old}.")
        for attention, short in (("self_attn", "sa"), ("encoder_attn", "ca"))
        for new, old in (
            ("q_content_proj", "qcontent_proj"),
            ("q_pos_proj", "qpos_proj"),
            ("q_pos_sine_proj", "qpos_sine_proj"),
            ("k_content_proj", "kcontent_proj"),
            ("k_pos_proj", "kpos_proj"),
            ("v_proj", "v_proj"),
        )
    ),
    *OLDER,
)
# The layers behind the first do without this projection of the query's place.
FIRST_ONLY = "cross_attn.query_position"


def common_pairs() -> list[Pair]:
    """What both call alike outside the layers."""
    return [
        *weight_and_bias("model.input_projection", "neck.conv"),
        *weight_and_bias("model.decoder.layernorm", "transformer.decoder.norm"),
        *mlp_pairs("model.decoder.query_scale", "transformer.decoder.spatial_query.scale", 2),
    ]


def conditional_decoder_parts() -> dict[str, str]:
    """Our name -> theirs of what a decoder layer of Conditional DETR holds."""
    parts = FEEDFORWARD | {"cross_attn_norm": "encoder_attn_layer_norm"}
    for ours, theirs, projections in (
        ("self_attn", "self_attn", CONDITIONAL_SELF),
        ("cross_attn", "encoder_attn", CONDITIONAL_CROSS),
    ):
        parts |= {f"{ours}.{k}": f"{theirs}.{v}" for k, v in projections.items()}
        parts[f"{ours}.out_proj"] = f"{theirs}.o_proj"
    return parts


def dab_decoder_parts() -> dict[str, str]:
    """Our name -> theirs of what a decoder layer of DAB-DETR holds."""
    parts = {
        "ffn.linear1": "mlp.fc1",
        "ffn.linear2": "mlp.fc2",
        "ffn_norm": "mlp.final_layer_norm",
    }
    for name, projections in (("self_attn", DAB_SELF), ("cross_attn", DAB_CROSS)):
        parts |= {f"{name}.{k}": f"{name}.{name}_{v}" for k, v in projections.items()}
        parts[f"{name}.out_proj"] = f"{name}.{name}.output_proj"
        parts[f"{name}_norm"] = f"{name}.{name}_layer_norm"
    return parts


def decoder_layer_pairs(parts: dict[str, str]) -> list[Pair]:
    """Every linear layer and norm of the decoder layers."""
    return [
        pair
        for i in range(NUM_LAYERS)
        for ours, theirs in parts.items()
        if ours != FIRST_ONLY or i == 0
        for pair in weight_and_bias(
            f"model.decoder.layers.{i}.{theirs}", f"transformer.decoder.layers.{i}.{ours}"
        )
    ]


def encoder_layer_pairs(parts: dict[str, str], out_proj: str) -> list[Pair]:
    """Every tensor of the encoder layers but activations."""
    pairs: list[Pair] = []
    for i in range(NUM_LAYERS):
        theirs, ours = f"model.encoder.layers.{i}", f"transformer.encoder.layers.{i}"
        pairs += attention_pairs(f"{theirs}.self_attn", f"{ours}.self_attn", out_proj=out_proj)
        for new, old in parts.items():
            pairs += weight_and_bias(f"{theirs}.{old}", f"{ours}.{new}")
    return pairs


def conditional_detr_transformers_converter(depth: int = 50) -> Converter:
    """`ConditionalDetrForObjectDetection`, such as microsoft/conditional-detr-resnet-50."""
    source, decoder = "transformer.query_source", "transformer.decoder"
    pairs = [
        *backbone_pairs(depth),
        *common_pairs(),
        Pair("model.query_position_embeddings.weight", f"{source}.embedding.weight"),
        *mlp_pairs("model.decoder.ref_point_head", f"{source}.ref_point_head", 2),
        *encoder_layer_pairs(FEEDFORWARD, "o_proj"),
        *decoder_layer_pairs(conditional_decoder_parts()),
        *weight_and_bias(
            "class_labels_classifier", f"{decoder}.class_heads.0", classes=ClassRows()
        ),
        *mlp_pairs("bbox_predictor", f"{decoder}.box_heads.0", NUM_BOX_LAYERS),
    ]
    return Converter(
        name=f"Conditional DETR ResNet-{depth} (huggingface/transformers)",
        config=f"ConditionalDETR/conditional_detr_R_{depth}_50ep.yaml",
        pairs=with_older_names(pairs, CONDITIONAL_OLDER),
        twin=transformers_conditional_detr,
    )


def dab_detr_transformers_converter() -> Converter:
    """`DabDetrForObjectDetection`, such as IDEA-Research/dab-detr-resnet-50."""
    decoder = "transformer.decoder"
    encoder_parts = {
        "self_attn_norm": "self_attn_layer_norm",
        "ffn.linear1": "fc1",
        "ffn.linear2": "fc2",
        "ffn_norm": "final_layer_norm",
    }
    activations = {"encoder": "activation_fn", "decoder": "mlp.activation_fn"}
    boxes = mlp_pairs("bbox_predictor", f"{decoder}.box_heads.0", NUM_BOX_LAYERS)
    copies = mlp_pairs("model.decoder.bbox_embed", "", NUM_BOX_LAYERS)
    pairs = [
        *backbone_pairs(50, "model.backbone.conv_encoder.model."),
        *common_pairs(),
        Pair(
            "model.query_refpoint_embeddings.weight", "transformer.query_source.box_logits.weight"
        ),
        *mlp_pairs("model.encoder.query_scale", "transformer.encoder.position_scale", 2),
        *mlp_pairs("model.decoder.ref_point_head", f"{decoder}.query_position.ref_point_head", 2),
        *mlp_pairs("model.decoder.ref_anchor_head", f"{decoder}.spatial_query.size_head", 2),
        *encoder_layer_pairs(encoder_parts, "out_proj"),
        *decoder_layer_pairs(dab_decoder_parts()),
        *(
            Pair(
                f"model.{stack}.layers.{i}.{name}.weight",
                f"transformer.{stack}.layers.{i}.ffn.activation.weight",
            )
            for stack, name in activations.items()
            for i in range(NUM_LAYERS)
        ),
        *weight_and_bias("class_embed", f"{decoder}.class_heads.0", classes=ClassRows()),
        *(
            Pair(pair.source, pair.detectron2, copies=(copy.source,))
            for pair, copy in zip(boxes, copies, strict=True)
        ),
    ]
    return Converter(
        name="DAB-DETR ResNet-50 (huggingface/transformers)",
        config="DABDETR/dab_detr_R_50_50ep.yaml",
        pairs=tuple(pairs),
        twin=transformers_dab_detr,
    )
