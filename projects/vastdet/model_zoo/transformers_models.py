# SPDX-License-Identifier: Apache-2.0
"""DETR and Deformable DETR under the names of Hugging Face transformers (5.23 and older).

Names were read off its modules; tests/model_zoo compares their outputs with ours. A file that
`save_pretrained` wrote has older names than the modules, and a backbone those of timm or those of
transformers' own ResNet: all are known. The modules keep query, key and value apart.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vastdet.model_zoo.deformable_models import NUM_BOX_LAYERS, layer_pairs, mlp_pairs
from vastdet.model_zoo.key_map import ClassRows, Converter, ObjectnessRows, Pair
from vastdet.model_zoo.torchvision_models import resnet_pairs, weight_and_bias
from vastdet.model_zoo.twins import transformers_deformable_detr, transformers_detr

NUM_LEVELS = 4
NUM_LAYERS = 6
FEEDFORWARD = {
    "ffn.linear1": "mlp.fc1",
    "ffn.linear2": "mlp.fc2",
    "ffn_norm": "final_layer_norm",
    "self_attn_norm": "self_attn_layer_norm",
}
CROSS_NORM = {"cross_attn_norm": "encoder_attn_layer_norm"}
# A part of a name now -> before transformers 5, and in the files that it still writes.
OLDER = (("backbone.", "backbone.conv_encoder."), (".o_proj.", ".out_proj."), (".mlp.fc", ".fc"))


def with_older_names(
    pairs: Iterable[Pair], older: Sequence[tuple[str, str]] = OLDER
) -> tuple[Pair, ...]:
    """The pairs, with the names in files as aliases; `older` has parts of names, new and old."""
    known = []
    for pair in pairs:
        aliases = dict.fromkeys(pair.aliases)
        for name in (pair.source, *pair.aliases):
            for new, old in older:
                name = name.replace(new, old)
            aliases[name] = None
        aliases.pop(pair.source, None)
        known.append(replace(pair, aliases=() if pair.parts else tuple(aliases)))
    return tuple(known)


def backbone_pairs(depth: int = 50, prefix: str = "model.backbone.model.") -> list[Pair]:
    """A ResNet of transformers; the aliases are timm's."""
    pairs = []
    for pair in resnet_pairs(depth, prefix, "backbone."):
        name = pair.detectron2.removeprefix("backbone.").replace("stem.conv1", "embedder.embedder")
        name = re.sub(r"\bconv(\d)\b", lambda m: f"layer.{int(m[1]) - 1}", name)
        stage = r"\bres(\d)\.(\d+)"
        name = re.sub(stage, lambda m: f"encoder.stages.{int(m[1]) - 2}.layers.{m[2]}", name)
        layer, _, tensor = name.rpartition(".")
        if layer.endswith(".norm"):
            layer = f"{layer.removesuffix('.norm')}.normalization"
        else:
            layer = f"{layer}.convolution"
        source = f"{prefix}{layer}.{tensor}"
        pairs.append(replace(pair, source=source, aliases=(pair.source,)))
    return pairs


def attention_pairs(source: str, ours: str, *, out_proj: str = "o_proj") -> list[Pair]:
    """A dense attention, whose query, key and value projections are one tensor in ours."""
    pairs = [
        Pair(
            f"{source}.in_proj_{tensor}",
            f"{ours}.in_proj_{tensor}",
            parts=tuple(f"{source}.{x}_proj.{tensor}" for x in "qkv"),
        )
        for tensor in ("weight", "bias")
    ]
    return pairs + weight_and_bias(f"{source}.{out_proj}", f"{ours}.out_proj")


def stack_pairs(*, is_deformable: bool) -> list[Pair]:
    """Every tensor of the encoder and decoder layers."""
    pairs: list[Pair] = []
    for i in range(NUM_LAYERS):
        theirs, ours = f"model.encoder.layers.{i}", f"transformer.encoder.layers.{i}"
        pairs += layer_pairs(FEEDFORWARD, theirs, ours)
        if is_deformable:
            pairs += layer_pairs({"self_attn": "self_attn"}, theirs, ours)
        else:
            pairs += attention_pairs(f"{theirs}.self_attn", f"{ours}.self_attn")
        theirs, ours = f"model.decoder.layers.{i}", f"transformer.decoder.layers.{i}"
        pairs += layer_pairs(FEEDFORWARD | CROSS_NORM, theirs, ours)
        pairs += attention_pairs(f"{theirs}.self_attn", f"{ours}.self_attn")
        if is_deformable:
            pairs += layer_pairs({"cross_attn": "encoder_attn"}, theirs, ours)
        else:
            pairs += attention_pairs(f"{theirs}.encoder_attn", f"{ours}.cross_attn")
    return pairs


def deformable_head_pairs(variant: str) -> list[Pair]:
    """The heads; the decoder has copies of those that it uses itself."""
    numbers = [range(NUM_LAYERS)] if variant == "plain" else [range(i, i + 1) for i in range(6)]
    places = [(group, f"transformer.decoder.{{}}s.{i}") for i, group in enumerate(numbers)]
    if variant == "two_stage":
        last = range(NUM_LAYERS, NUM_LAYERS + 1)
        places.append((last, "transformer.query_source.selection.{}"))
    pairs: list[Pair] = []
    for group, place in places:
        rows = ObjectnessRows() if "selection" in place else ClassRows()
        heads = weight_and_bias("class_embed.{}", place.format("class_head"), classes=rows)
        heads += mlp_pairs("bbox_embed.{}", place.format("box_head"), NUM_BOX_LAYERS)
        for pair in heads:
            names = [pair.source.format(i) for i in group]
            kind = pair.source.split(".")[0]
            is_copied = variant == "two_stage" or (variant == "refined" and kind == "bbox_embed")
            copies = [f"model.decoder.{name}" for name in names] if is_copied else []
            # transformers 5 shares the class heads of the refined variant; files have one.
            is_shared = variant == "refined" and kind == "class_embed"
            stand_in = pair.source.format(0) if is_shared else ""
            copies = [*names[1:], *copies]
            pairs.append(replace(pair, source=names[0], copies=tuple(copies), stand_in=stand_in))
    return pairs


def deformable_detr_transformers_converter(variant: str) -> Converter:
    """`DeformableDetrForObjectDetection`, such as SenseTime/deformable-detr (plain)."""
    source = "transformer.query_source"
    pairs = [
        *backbone_pairs(),
        Pair("model.level_embed", "transformer.to_tokens.level_embedding"),
        *stack_pairs(is_deformable=True),
        *deformable_head_pairs(variant),
    ]
    for i in range(NUM_LEVELS):
        pairs += weight_and_bias(f"model.input_proj.{i}.0", f"neck.convs.{i}")
        pairs += weight_and_bias(f"model.input_proj.{i}.1", f"neck.norms.{i}")
    if variant == "two_stage":
        pairs += weight_and_bias("model.enc_output", f"{source}.selection.output")
        pairs += weight_and_bias("model.enc_output_norm", f"{source}.selection.output_norm")
        pairs += weight_and_bias("model.pos_trans", f"{source}.position_transform")
        pairs += weight_and_bias("model.pos_trans_norm", f"{source}.position_norm")
    else:
        pairs.append(Pair("model.query_position_embeddings.weight", f"{source}.embedding.weight"))
        pairs += weight_and_bias("model.reference_points", f"{source}.reference_points")
    return Converter(
        name=f"Deformable DETR {variant} ResNet-50 (huggingface/transformers)",
        config=f"DeformableDETR/deformable_detr_R_50_{variant}_50ep.yaml",
        pairs=with_older_names(pairs),
        twin=transformers_deformable_detr,
    )


def detr_transformers_converter(depth: int = 50) -> Converter:
    """`DetrForObjectDetection`, such as facebook/detr-resnet-50."""
    queries = "transformer.query_source.embedding.weight"
    pairs = [
        *backbone_pairs(depth),
        Pair("model.query_position_embeddings.weight", queries),
        *weight_and_bias("model.input_projection", "neck.conv"),
        *stack_pairs(is_deformable=False),
        *weight_and_bias("model.decoder.layernorm", "transformer.decoder.norm"),
        *weight_and_bias(
            "class_labels_classifier",
            "transformer.decoder.class_heads.0",
            classes=ClassRows(after=1),
        ),
        *mlp_pairs("bbox_predictor", "transformer.decoder.box_heads.0", NUM_BOX_LAYERS),
    ]
    return Converter(
        name=f"DETR ResNet-{depth} (huggingface/transformers)",
        config=f"DETR/detr_R_{depth}_500ep.yaml",
        pairs=with_older_names(pairs),
        twin=transformers_detr,
    )
