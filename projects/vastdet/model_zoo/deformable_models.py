# SPDX-License-Identifier: Apache-2.0
"""Deformable DETR and its descendants under the names of the authors and of detrex.

Names were read off the code bases' state dicts (IDEA-Research/DINO, detrex).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vastdet.backbones.swin import SIZES
from vastdet.model_zoo.key_map import ClassRows, Converter, Layout, ObjectnessRows, Pair
from vastdet.model_zoo.swin_models import BUFFERS, MICROSOFT, swin_pairs
from vastdet.model_zoo.torchvision_models import resnet_pairs, weight_and_bias

MSDA_PARTS = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
NUM_BOX_LAYERS = 3


@dataclass(frozen=True)
class LayerNames:
    """What a code base calls the parts of a transformer layer.

    Attributes:
        encoder: our name -> theirs, of an encoder layer.
        decoder: our name -> theirs, of a decoder layer.
    """

    encoder: dict[str, str]
    decoder: dict[str, str]


# The authors number norms in the order of the code, not of the computation.
ORIGINAL = LayerNames(
    encoder={
        "self_attn": "self_attn",
        "self_attn_norm": "norm1",
        "ffn.linear1": "linear1",
        "ffn.linear2": "linear2",
        "ffn_norm": "norm2",
    },
    decoder={
        "self_attn": "self_attn",
        "self_attn_norm": "norm2",
        "cross_attn": "cross_attn",
        "cross_attn_norm": "norm1",
        "ffn.linear1": "linear1",
        "ffn.linear2": "linear2",
        "ffn_norm": "norm3",
    },
)
DETREX = LayerNames(
    encoder={
        "self_attn": "attentions.0",
        "self_attn_norm": "norms.0",
        "ffn.linear1": "ffns.0.layers.0.0",
        "ffn.linear2": "ffns.0.layers.1",
        "ffn_norm": "norms.1",
    },
    decoder={
        "self_attn": "attentions.0.attn",
        "self_attn_norm": "norms.0",
        "cross_attn": "attentions.1",
        "cross_attn_norm": "norms.1",
        "ffn.linear1": "ffns.0.layers.0.0",
        "ffn.linear2": "ffns.0.layers.1",
        "ffn_norm": "norms.2",
    },
)


def layer_pairs(names: dict[str, str], source: str, ours: str) -> list[Pair]:
    """Every tensor of one encoder or decoder layer; `source` and `ours` are its prefixes."""
    pairs: list[Pair] = []
    is_decoder = "cross_attn" in names
    for part, theirs in names.items():
        old, new = f"{source}.{theirs}", f"{ours}.{part}"
        if part == "prompt_attn" or (part == "self_attn" and is_decoder):
            pairs += [Pair(f"{old}.in_proj_{t}", f"{new}.in_proj_{t}") for t in ("weight", "bias")]
            pairs += weight_and_bias(f"{old}.out_proj", f"{new}.out_proj")
        elif part in ("self_attn", "cross_attn"):
            for child in MSDA_PARTS:
                pairs += weight_and_bias(f"{old}.{child}", f"{new}.{child}")
        else:
            pairs += weight_and_bias(old, new)
    return pairs


def stack_pairs(
    names: LayerNames, num_encoder: int, num_decoder: int, *, source: str = "transformer."
) -> list[Pair]:
    """Every tensor of the encoder and decoder layers; `source` is their prefix."""
    pairs: list[Pair] = []
    for stack, layer, count in (
        ("encoder", names.encoder, num_encoder),
        ("decoder", names.decoder, num_decoder),
    ):
        for i in range(count):
            name = f"{stack}.layers.{i}"
            pairs += layer_pairs(layer, f"{source}{name}", f"transformer.{name}")
    return pairs


HEAD_PREFIXES = ("", "transformer.decoder.")
ONE_A_CLASS = ClassRows()


def head_pairs(
    kind: str,
    layers: Sequence[int],
    ours: str,
    *,
    prefixes: Sequence[str] = HEAD_PREFIXES,
    rows: ClassRows = ONE_A_CLASS,
) -> list[Pair]:
    """One class or box head; `kind` is `class_embed` or `bbox_embed`, `rows` are of the former.

    The files hold it under the name of every layer that it serves, and each of these names once
    for each prefix: most a second time under the decoder.
    """
    pairs: list[Pair] = []
    parts = [f".layers.{i}" for i in range(NUM_BOX_LAYERS)] if kind == "bbox_embed" else [""]
    for part in parts:
        for tensor in ("weight", "bias"):
            first, *copies = [
                f"{prefix}{kind}.{layer}{part}.{tensor}" for prefix in prefixes for layer in layers
            ]
            target = f"{ours}{part}.{tensor}"
            classes = rows if kind == "class_embed" else None
            pairs.append(Pair(first, target, classes=classes, copies=tuple(copies)))
    return pairs


def decoder_head_pairs(num_layers: int, *, shared: bool) -> list[Pair]:
    """The class and box heads of all decoder layers."""
    layers = range(num_layers)
    groups = [list(layers)] if shared else [[layer] for layer in layers]
    return [
        pair
        for i, group in enumerate(groups)
        for kind, ours in (("class_embed", "class_heads"), ("bbox_embed", "box_heads"))
        for pair in head_pairs(kind, group, f"transformer.decoder.{ours}.{i}")
    ]


def mlp_pairs(source: str, ours: str, num_layers: int) -> list[Pair]:
    """Every tensor of an `MLP`."""
    return [
        pair
        for i in range(num_layers)
        for pair in weight_and_bias(f"{source}.layers.{i}", f"{ours}.layers.{i}")
    ]


def original_neck_pairs(num_levels: int) -> list[Pair]:
    """The level projections of the authors' repositories: `input_proj.<level>.{0, 1}`."""
    pairs: list[Pair] = []
    for i in range(num_levels):
        pairs += weight_and_bias(f"input_proj.{i}.0", f"neck.convs.{i}")
        pairs += weight_and_bias(f"input_proj.{i}.1", f"neck.norms.{i}")
    return pairs


def detrex_neck_pairs(num_maps: int, num_levels: int) -> list[Pair]:
    """The level projections of detrex: `neck.convs` for the maps, `neck.extra_convs` beyond."""
    pairs: list[Pair] = []
    for i in range(num_levels):
        theirs = f"neck.convs.{i}" if i < num_maps else f"neck.extra_convs.{i - num_maps}"
        pairs += weight_and_bias(f"{theirs}.conv", f"neck.convs.{i}")
        pairs += weight_and_bias(f"{theirs}.norm", f"neck.norms.{i}")
    return pairs


def selection_pairs() -> list[Pair]:
    """The linear layer and norm before the proposals."""
    return [
        *weight_and_bias("transformer.enc_output", "transformer.query_source.selection.output"),
        *weight_and_bias(
            "transformer.enc_output_norm", "transformer.query_source.selection.output_norm"
        ),
    ]


def detectron2_resnet_pairs(depth: int) -> list[Pair]:
    """A ResNet under Detectron2's names on both sides."""
    return [Pair(pair.detectron2, pair.detectron2) for pair in resnet_pairs(depth, "", "backbone.")]


def dino_transformer_pairs(num_encoder: int, num_decoder: int, *, num_levels: int) -> list[Pair]:
    """All but the backbone of DINO in the authors' code."""
    return [
        Pair("transformer.level_embed", "transformer.to_tokens.level_embedding"),
        Pair("transformer.tgt_embed.weight", "transformer.query_source.content.weight"),
        Pair(
            "label_enc.weight",
            "transformer.denoising.label_embedding.weight",
            classes=ClassRows(after=1),
        ),
        *original_neck_pairs(num_levels),
        *stack_pairs(ORIGINAL, num_encoder, num_decoder),
        *selection_pairs(),
        *weight_and_bias(
            "transformer.enc_out_class_embed",
            "transformer.query_source.selection.class_head",
            classes=(1, 1),
        ),
        *mlp_pairs(
            "transformer.enc_out_bbox_embed",
            "transformer.query_source.selection.box_head",
            NUM_BOX_LAYERS,
        ),
        *dino_decoder_pairs(),
        *decoder_head_pairs(num_decoder, shared=True),
    ]


def dino_decoder_pairs() -> list[Pair]:
    """Norm and query positions of DINO's decoder, alike in both code bases."""
    return [
        *weight_and_bias("transformer.decoder.norm", "transformer.decoder.norm"),
        *mlp_pairs(
            "transformer.decoder.ref_point_head",
            "transformer.decoder.query_position.ref_point_head",
            2,
        ),
    ]


def dino_converter(*, num_levels: int = 4, depth: int = 50) -> Converter:
    """IDEA-Research/DINO with a ResNet."""
    return Converter(
        name=f"DINO {num_levels}-scale ResNet-{depth} (IDEA-Research/DINO)",
        config=f"DINO/dino_R_{depth}_{num_levels}scale_12ep.yaml",
        pairs=(
            *resnet_pairs(depth, "backbone.0.body.", "backbone."),
            *dino_transformer_pairs(6, 6, num_levels=num_levels),
        ),
    )


def dino_swin_converter(*, num_levels: int = 4) -> Converter:
    """IDEA-Research/DINO with Swin-L: the maps of the last three stages, or of all for 5 scales."""
    stages = range(5 - num_levels, 4)
    depths = SIZES["L"].depths
    return Converter(
        name=f"DINO {num_levels}-scale Swin-L (IDEA-Research/DINO)",
        config=f"DINO/dino_swin_L_{num_levels}scale_12ep.yaml",
        pairs=(
            *swin_pairs(MICROSOFT, depths, "backbone.0.", "backbone.", output_norms=stages),
            *dino_transformer_pairs(6, 6, num_levels=num_levels),
        ),
        ignored=BUFFERS,
    )


def with_unused_row(embedding: Tensor) -> Tensor:
    """An embedding (K, C) with a row of zeros for the class that is never read."""
    return torch.cat([embedding, embedding.new_zeros(1, embedding.shape[1])])


def dino_detrex_converter() -> Converter:
    """Detrex's DINO, 4 scales, ResNet-50; its seventh heads are those of the proposals."""
    num_layers = 6
    return Converter(
        name="DINO 4-scale ResNet-50 (detrex)",
        config="DINO/dino_R_50_4scale_12ep_detrex.yaml",
        pairs=(
            *detectron2_resnet_pairs(50),
            Pair("transformer.level_embeds", "transformer.to_tokens.level_embedding"),
            Pair("transformer.tgt_embed.weight", "transformer.query_source.content.weight"),
            Pair(
                "label_enc.weight",
                "transformer.denoising.label_embedding.weight",
                Layout(with_unused_row, lambda t: t[:-1]),
                classes=ClassRows(),
            ),
            *detrex_neck_pairs(3, 4),
            *stack_pairs(DETREX, num_layers, num_layers),
            *selection_pairs(),
            *head_pairs(
                "class_embed", [num_layers], "transformer.query_source.selection.class_head"
            ),
            *head_pairs("bbox_embed", [num_layers], "transformer.query_source.selection.box_head"),
            *dino_decoder_pairs(),
            *decoder_head_pairs(num_layers, shared=False),
        ),
    )


def deformable_detr_transformer_pairs(
    variant: str, num_encoder: int, num_decoder: int, *, num_levels: int
) -> list[Pair]:
    """All but the backbone of Deformable DETR in the authors' code.

    Args:
        variant: "plain", "refined" or "two_stage", as `MODEL.DEFORMABLE_DETR.VARIANT`.
        num_encoder: encoder layers.
        num_decoder: decoder layers.
        num_levels: levels of the transformer.
    """
    source = "transformer.query_source"
    pairs = [
        Pair("transformer.level_embed", "transformer.to_tokens.level_embedding"),
        *original_neck_pairs(num_levels),
        *stack_pairs(ORIGINAL, num_encoder, num_decoder),
    ]
    # The authors' decoder knows the heads that it needs: those of boxes where it refines them,
    # those of classes only in the two-stage variant.
    known = {"plain": (), "refined": ("bbox_embed",), "two_stage": ("bbox_embed", "class_embed")}
    heads = [range(num_decoder)] if variant == "plain" else [[i] for i in range(num_decoder)]
    places = [(layers, f"transformer.decoder.{{}}s.{i}") for i, layers in enumerate(heads)]
    if variant == "two_stage":
        places.append(([num_decoder], f"{source}.selection.{{}}"))
        for part in ("output", "output_norm"):
            pairs += weight_and_bias(f"transformer.enc_{part}", f"{source}.selection.{part}")
        pairs += weight_and_bias("transformer.pos_trans", f"{source}.position_transform")
        pairs += weight_and_bias("transformer.pos_trans_norm", f"{source}.position_norm")
    else:
        pairs.append(Pair("query_embed.weight", f"{source}.embedding.weight"))
        pairs += weight_and_bias("transformer.reference_points", f"{source}.reference_points")
    for kind, ours in (("class_embed", "class_head"), ("bbox_embed", "box_head")):
        prefixes = HEAD_PREFIXES if kind in known[variant] else HEAD_PREFIXES[:1]
        for layers, place in places:
            rows = ObjectnessRows() if "selection" in place else ClassRows()
            pairs += head_pairs(kind, layers, place.format(ours), prefixes=prefixes, rows=rows)
    return pairs


def deformable_detr_converter(variant: str = "plain") -> Converter:
    """fundamentalvision/Deformable-DETR with a ResNet-50; see the variants above."""
    return Converter(
        name=f"Deformable DETR {variant} ResNet-50 (fundamentalvision/Deformable-DETR)",
        config=f"DeformableDETR/deformable_detr_R_50_{variant}_50ep.yaml",
        pairs=(
            *resnet_pairs(50, "backbone.0.body.", "backbone."),
            *deformable_detr_transformer_pairs(variant, 6, 6, num_levels=4),
        ),
    )


def deta_transformer_pairs(num_encoder: int, num_decoder: int, *, num_levels: int) -> list[Pair]:
    """All but the backbone of DETA in the authors' code."""
    source = "transformer.query_source"
    return [
        *deformable_detr_transformer_pairs(
            "two_stage", num_encoder, num_decoder, num_levels=num_levels
        ),
        *weight_and_bias("transformer.pix_trans", f"{source}.feature_transform"),
        *weight_and_bias("transformer.pix_trans_norm", f"{source}.feature_norm"),
    ]


def deta_converter() -> Converter:
    """jozhang97/DETA with a ResNet-50 and 5 levels."""
    return Converter(
        name="DETA 5-level ResNet-50 (jozhang97/DETA)",
        config="DETA/deta_R_50_12ep.yaml",
        pairs=(
            *resnet_pairs(50, "backbone.0.body.", "backbone."),
            *deta_transformer_pairs(6, 6, num_levels=5),
        ),
    )
