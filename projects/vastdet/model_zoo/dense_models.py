# SPDX-License-Identifier: Apache-2.0
"""DETR under the names of the authors (facebookresearch/detr)."""

from collections.abc import Iterable
from dataclasses import replace

from vastdet.model_zoo.key_map import ClassRows, Converter, Pair
from vastdet.model_zoo.torchvision_models import resnet_pairs, weight_and_bias

# Our name -> theirs of the parts of a layer, but for the attentions.
ENCODER_PARTS = {
    "self_attn_norm": "norm1",
    "ffn.linear1": "linear1",
    "ffn.linear2": "linear2",
    "ffn_norm": "norm2",
}
DECODER_PARTS = {
    "self_attn_norm": "norm1",
    "cross_attn_norm": "norm2",
    "ffn.linear1": "linear1",
    "ffn.linear2": "linear2",
    "ffn_norm": "norm3",
}


def attention_pairs(source: str, ours: str) -> list[Pair]:
    """Every tensor of a dense attention."""
    packed = [Pair(f"{source}.in_proj_{t}", f"{ours}.in_proj_{t}") for t in ("weight", "bias")]
    return packed + weight_and_bias(f"{source}.out_proj", f"{ours}.out_proj")


def dense_stack_pairs(num_encoder: int, num_decoder: int) -> list[Pair]:
    """Every tensor of the encoder and decoder layers."""
    pairs: list[Pair] = []
    for stack, count, attentions, parts in (
        ("encoder", num_encoder, {"self_attn": "self_attn"}, ENCODER_PARTS),
        (
            "decoder",
            num_decoder,
            {"self_attn": "self_attn", "cross_attn": "multihead_attn"},
            DECODER_PARTS,
        ),
    ):
        for i in range(count):
            prefix = f"transformer.{stack}.layers.{i}"
            for ours, theirs in attentions.items():
                pairs += attention_pairs(f"{prefix}.{theirs}", f"{prefix}.{ours}")
            for ours, theirs in parts.items():
                pairs += weight_and_bias(f"{prefix}.{theirs}", f"{prefix}.{ours}")
    return pairs


def detr_transformer_pairs(num_encoder: int, num_decoder: int) -> list[Pair]:
    """All but the backbone of DETR."""
    heads = "transformer.decoder"
    return [
        Pair("query_embed.weight", "transformer.query_source.embedding.weight"),
        *weight_and_bias("input_proj", "neck.conv"),
        *dense_stack_pairs(num_encoder, num_decoder),
        *weight_and_bias("transformer.decoder.norm", "transformer.decoder.norm"),
        *weight_and_bias("class_embed", f"{heads}.class_heads.0", classes=ClassRows(after=1)),
        *(
            pair
            for i in range(3)
            for pair in weight_and_bias(f"bbox_embed.layers.{i}", f"{heads}.box_heads.0.layers.{i}")
        ),
    ]


# Our name -> theirs of the layers of the mask head; the norm of a convolution has its number.
MASK_CONVS = {f"mask_head.convs.{i}": f"mask_head.{{}}{i + 1}" for i in range(5)}


def prefixed(prefix: str, pairs: Iterable[Pair]) -> list[Pair]:
    """The same tensors, below `prefix` in the other code base."""
    return [replace(pair, source=f"{prefix}{pair.source}") for pair in pairs]


def mask_head_pairs() -> list[Pair]:
    """The attention maps and the mask head of DETR's panoptic models."""
    pairs = weight_and_bias("mask_head.out_lay", "mask_head.output")
    for ours, theirs in MASK_CONVS.items():
        pairs += weight_and_bias(theirs.format("lay"), f"{ours}.conv")
        pairs += weight_and_bias(theirs.format("gn"), f"{ours}.norm")
    for i in range(3):
        pairs += weight_and_bias(f"mask_head.adapter{i + 1}", f"mask_head.adapters.{i}")
    for name in ("query", "key"):
        pairs += weight_and_bias(f"bbox_attention.{name[0]}_linear", f"attention_maps.{name}_proj")
    return pairs


def panoptic_detr_converter(depth: int = 50, *, dc5: bool = False) -> Converter:
    """facebookresearch/detr with its mask head; arguments as for `detr_converter`.

    Their 250 classes are COCO's ids, those of things up to 90: beside NUM_CLASSES 250, our config
    needs NUM_THING_CLASSES 91 for them.
    """
    detector = detr_converter(depth, dc5=dc5)
    backbone = f"R_{depth}_DC5" if dc5 else f"R_{depth}"
    return Converter(
        name=f"panoptic DETR {backbone} (facebookresearch/detr)",
        config=f"DETR/panoptic_detr_{backbone}_25ep.yaml",
        pairs=(*prefixed("detr.", detector.pairs), *mask_head_pairs()),
    )


def detr_converter(depth: int = 50, *, dc5: bool = False) -> Converter:
    """facebookresearch/detr with a ResNet, `dc5` with its dilated last stage.

    Their last class row is "no object".
    """
    backbone = f"R_{depth}_DC5" if dc5 else f"R_{depth}"
    return Converter(
        name=f"DETR {backbone} (facebookresearch/detr)",
        config=f"DETR/detr_{backbone}_500ep.yaml",
        pairs=(
            *resnet_pairs(depth, "backbone.0.body.", "backbone."),
            *detr_transformer_pairs(6, 6),
        ),
    )
