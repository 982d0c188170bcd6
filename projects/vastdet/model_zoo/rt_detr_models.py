# SPDX-License-Identifier: Apache-2.0
"""RT-DETR and RT-DETRv2 under the names of the authors and of transformers, old and new.

Names were read off the code bases' modules (lyuwenyu/RT-DETR, both versions; transformers 5.23).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vastdet.model_zoo.deformable_models import MSDA_PARTS, NUM_BOX_LAYERS, mlp_pairs
from vastdet.model_zoo.key_map import ClassRows, Converter, Pair
from vastdet.model_zoo.torchvision_models import NORM_TENSORS, RESNETS, weight_and_bias
from vastdet.model_zoo.twins import transformers_rt_detr

NUM_LEVELS = 3
NUM_REP_BLOCKS = 3
# Our config of a version and depth.
CONFIGS = {
    (1, 18): "RTDETR/rt_detr_R_18_72ep.yaml",
    (1, 34): "RTDETR/rt_detr_R_34_72ep.yaml",
    (1, 50): "RTDETR/rt_detr_R_50_72ep.yaml",
    (1, 101): "RTDETR/rt_detr_R_101_72ep.yaml",
    (2, 18): "RTDETR/rt_detrv2_R_18_120ep.yaml",
    (2, 50): "RTDETR/rt_detrv2_R_50_72ep.yaml",
}
# Decoder layers of the published model with a ResNet of each depth.
DECODER_LAYERS = {18: 3, 34: 4, 50: 6, 101: 6}
# Depths whose fusion blocks are half as wide as the encoder.
NARROW = (18, 34)
# Where timm keeps convolutions and norms of the deep stem.
STEM = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))
# A part of a name in transformers' modules -> in files, which keep the names before transformers 5.
OLDER = ((".aifi.", ".encoder."), (".o_proj.", ".out_proj."), (".mlp.fc", ".fc"))


@dataclass(frozen=True)
class Names:
    """What a code base calls the parts. Braces stand for the number of a level, layer or block.

    Attributes:
        stem: each convolution of the stem.
        branches: the convolutions of a residual block, by stage and block.
        shortcut: the shortcut of the first block of a stage.
        pooled: what that name has in addition in all stages but the first, where it is pooled.
        conv_norm: a convolution and its norm, in the backbone.
        neck: a projection before the encoder and its norm.
        encoder: prefix of the encoder.
        encoder_layer: a layer of attention within the coarsest level.
        projection: a projection before the decoder and its norm.
        decoder_layer: a layer of the decoder.
        layer: our name of a part of a layer -> theirs.
        decoder: prefix of query selection, label embedding and query positions.
        query_position: the MLP of the reference boxes.
        output: the linear layer before the proposals and its norm.
        class_heads: class heads of the decoder; all names but the first are copies.
        box_heads: the same of the box heads.
    """

    stem: tuple[str, ...]
    branches: tuple[str, ...]
    shortcut: str
    pooled: str
    conv_norm: tuple[str, ...]
    neck: tuple[str, ...]
    encoder: str
    encoder_layer: str
    projection: tuple[str, ...]
    decoder_layer: str
    layer: Mapping[str, str]
    decoder: str
    query_position: str
    output: tuple[str, ...]
    class_heads: tuple[str, ...]
    box_heads: tuple[str, ...]


def authors_names(version: int) -> Names:
    """Names in lyuwenyu/RT-DETR; its two versions name some layers otherwise."""
    block = "backbone.res_layers.{}.blocks.{}.branch2"
    parts = ("conv", "norm") if version == 2 else ("0", "1")
    output = ("proj", "norm") if version == 2 else ("0", "1")
    return Names(
        stem=tuple(f"backbone.conv1.conv1_{i}" for i in (1, 2, 3)),
        branches=tuple(f"{block}{x}" for x in "abc"),
        shortcut="backbone.res_layers.{}.blocks.0.short",
        pooled=".conv",
        conv_norm=("conv", "norm"),
        neck=tuple(f"encoder.input_proj.{{}}.{x}" for x in parts),
        encoder="encoder.",
        encoder_layer="encoder.encoder.0.layers.{}",
        projection=("decoder.input_proj.{}.conv", "decoder.input_proj.{}.norm"),
        decoder_layer="decoder.decoder.layers.{}",
        layer={
            "self_attn": "self_attn",
            "self_attn.out_proj": "self_attn.out_proj",
            "self_attn_norm": "norm1",
            "cross_attn": "cross_attn",
            "cross_attn_norm": "norm2",
            "ffn.linear1": "linear1",
            "ffn.linear2": "linear2",
            "encoder_ffn_norm": "norm2",
            "decoder_ffn_norm": "norm3",
        },
        decoder="decoder.",
        query_position="decoder.query_pos_head",
        output=tuple(f"decoder.enc_output.{x}" for x in output),
        class_heads=("decoder.dec_score_head.{}",),
        box_heads=("decoder.dec_bbox_head.{}",),
    )


def transformers_names() -> Names:
    """Names in transformers, both versions; it keeps query, key and value apart."""
    block = "model.backbone.model.encoder.stages.{}.layers.{}.layer"
    heads = ("model.decoder.{}_embed", "{}_embed")
    return Names(
        stem=tuple(f"model.backbone.model.embedder.embedder.{i}" for i in range(3)),
        branches=tuple(f"{block}.{i}" for i in range(3)),
        shortcut="model.backbone.model.encoder.stages.{}.layers.0.shortcut",
        pooled=".1",
        conv_norm=("convolution", "normalization"),
        neck=("model.encoder_input_proj.{}.0", "model.encoder_input_proj.{}.1"),
        encoder="model.encoder.",
        encoder_layer="model.encoder.aifi.0.layers.{}",
        projection=("model.decoder_input_proj.{}.0", "model.decoder_input_proj.{}.1"),
        decoder_layer="model.decoder.layers.{}",
        layer={
            "self_attn": "self_attn",
            "self_attn.out_proj": "self_attn.o_proj",
            "self_attn_norm": "self_attn_layer_norm",
            "cross_attn": "encoder_attn",
            "cross_attn_norm": "encoder_attn_layer_norm",
            "ffn.linear1": "mlp.fc1",
            "ffn.linear2": "mlp.fc2",
            "encoder_ffn_norm": "final_layer_norm",
            "decoder_ffn_norm": "final_layer_norm",
        },
        decoder="model.",
        query_position="model.decoder.query_pos_head",
        output=("model.enc_output.0", "model.enc_output.1"),
        class_heads=tuple(f"{head.format('class')}.{{}}" for head in heads),
        box_heads=tuple(f"{head.format('bbox')}.{{}}" for head in heads),
    )


def conv_norm_pairs(source: Sequence[str], ours: Sequence[str]) -> list[Pair]:
    """A convolution without bias and its norm; both arguments name the two."""
    pairs = [Pair(f"{source[0]}.weight", f"{ours[0]}.weight")]
    return pairs + [Pair(f"{source[1]}.{t}", f"{ours[1]}.{t}") for t in NORM_TENSORS]


def resnet_vd_pairs(depth: int, names: Names) -> list[Pair]:
    """Every tensor of a ResNet-vd, to timm's names."""

    def theirs(name: str) -> list[str]:
        return [f"{name}.{part}" for part in names.conv_norm]

    pairs: list[Pair] = []
    for source, ours in zip(names.stem, STEM, strict=True):
        pairs += conv_norm_pairs(theirs(source), [f"backbone.body.{x}" for x in ours])
    blocks, num_convs = RESNETS[depth]
    for stage, num_blocks in enumerate(blocks):
        layer = f"backbone.body.layer{stage + 1}"
        for block in range(num_blocks):
            for i, branch in enumerate(names.branches[:num_convs], start=1):
                ours = (f"{layer}.{block}.conv{i}", f"{layer}.{block}.bn{i}")
                pairs += conv_norm_pairs(theirs(branch.format(stage, block)), ours)
        shortcut = names.shortcut.format(stage) + (names.pooled if stage else "")
        ours = (f"{layer}.0.downsample.1", f"{layer}.0.downsample.2")
        pairs += conv_norm_pairs(theirs(shortcut), ours)
    return pairs


def layer_pairs(names: Names, source: str, ours: str, *, is_decoder: bool) -> list[Pair]:
    """Every tensor of one encoder or decoder layer; `source` and `ours` are its prefixes."""
    old = {part: f"{source}.{name}" for part, name in names.layer.items()}
    pairs = [
        Pair(f"{old['self_attn']}.in_proj_{t}", f"{ours}.self_attn.in_proj_{t}")
        for t in ("weight", "bias")
    ]
    for part in ("self_attn.out_proj", "self_attn_norm", "ffn.linear1", "ffn.linear2"):
        pairs += weight_and_bias(old[part], f"{ours}.{part}")
    kind = "decoder" if is_decoder else "encoder"
    pairs += weight_and_bias(old[f"{kind}_ffn_norm"], f"{ours}.ffn_norm")
    if is_decoder:
        pairs += weight_and_bias(old["cross_attn_norm"], f"{ours}.cross_attn_norm")
        for child in MSDA_PARTS:
            pairs += weight_and_bias(f"{old['cross_attn']}.{child}", f"{ours}.cross_attn.{child}")
    return pairs


def hybrid_encoder_pairs(names: Names, num_layers: int, *, is_narrow: bool) -> list[Pair]:
    """Every tensor between the backbone and the tokens."""
    ours = "transformer.to_tokens.encoder"
    pairs: list[Pair] = []
    for i in range(NUM_LEVELS):
        for source, projections in (
            (names.neck, "neck.projections"),
            (names.projection, "transformer.to_tokens.projections"),
        ):
            pairs += conv_norm_pairs(
                [name.format(i) for name in source],
                (f"{projections}.{i}.0", f"{projections}.{i}.1"),
            )
    for i in range(num_layers):
        layer = names.encoder_layer.format(i)
        pairs += layer_pairs(names, layer, f"{ours}.aifi.{i}", is_decoder=False)
    inner = {"conv1": "deep", "conv2": "short"} | ({"conv3": "out"} if is_narrow else {})
    for j in range(NUM_REP_BLOCKS):
        inner[f"bottlenecks.{j}.conv1"] = f"blocks.{j}.conv3"
        inner[f"bottlenecks.{j}.conv2"] = f"blocks.{j}.conv1"
    parts = {"lateral_convs.{}": "laterals.{}", "downsample_convs.{}": "downsamples.{}"}
    for theirs, here in (("fpn_blocks", "top_down"), ("pan_blocks", "bottom_up")):
        parts |= {f"{theirs}.{{}}.{k}": f"{here}.{{}}.{v}" for k, v in inner.items()}
    for i in range(NUM_LEVELS - 1):
        for theirs, here in parts.items():
            old, new = f"{names.encoder}{theirs.format(i)}", f"{ours}.{here.format(i)}"
            pairs += conv_norm_pairs((f"{old}.conv", f"{old}.norm"), (f"{new}.0", f"{new}.1"))
    return pairs


def decoder_pairs(names: Names, num_layers: int) -> list[Pair]:
    """Every tensor of query selection, denoising and decoder."""
    selection = "transformer.query_source.selection"
    pairs = [
        Pair(
            f"{names.decoder}denoising_class_embed.weight",
            "transformer.denoising.label_embedding.weight",
            classes=ClassRows(after=1),
        ),
        *weight_and_bias(names.output[0], f"{selection}.output"),
        *weight_and_bias(names.output[1], f"{selection}.output_norm"),
        *weight_and_bias(
            f"{names.decoder}enc_score_head", f"{selection}.class_head", classes=ClassRows()
        ),
        *mlp_pairs(f"{names.decoder}enc_bbox_head", f"{selection}.box_head", NUM_BOX_LAYERS),
        *mlp_pairs(names.query_position, "transformer.decoder.query_position.mlp", 2),
    ]
    for i in range(num_layers):
        ours = "transformer.decoder"
        source = names.decoder_layer.format(i)
        pairs += layer_pairs(names, source, f"{ours}.layers.{i}", is_decoder=True)
        pairs += copied_pairs([x.format(i) for x in names.class_heads], f"{ours}.class_heads.{i}")
        for j in range(NUM_BOX_LAYERS):
            heads = [f"{x.format(i)}.layers.{j}" for x in names.box_heads]
            pairs += copied_pairs(heads, f"{ours}.box_heads.{i}.layers.{j}")
    return pairs


def copied_pairs(sources: Sequence[str], ours: str) -> list[Pair]:
    """A linear layer that files may hold under several names."""
    classes = ClassRows() if ".class_heads." in ours else None
    return [
        Pair(
            f"{sources[0]}.{t}",
            f"{ours}.{t}",
            classes=classes,
            copies=tuple(f"{source}.{t}" for source in sources[1:]),
        )
        for t in ("weight", "bias")
    ]


def rt_detr_pairs(names: Names, depth: int) -> tuple[Pair, ...]:
    """Every tensor of the published model with a ResNet of a depth."""
    return (
        *resnet_vd_pairs(depth, names),
        *hybrid_encoder_pairs(names, 1, is_narrow=depth in NARROW),
        *decoder_pairs(names, DECODER_LAYERS[depth]),
    )


def batch_counters(pairs: Sequence[Pair], depth: int) -> dict[str, Tensor]:
    """The counters of our norms, which nothing reads; frozen norms of a backbone have none."""
    norms = [p.detectron2.removesuffix(".running_mean") for p in pairs]
    return {
        f"{norm}.num_batches_tracked": torch.tensor(0)
        for norm, pair in zip(norms, pairs, strict=True)
        if norm != pair.detectron2 and (depth in NARROW or not norm.startswith("backbone."))
    }


def rt_detr_converter(depth: int = 50, *, version: int = 1) -> Converter:
    """lyuwenyu/RT-DETR with a ResNet-vd; depth and version are those of `CONFIGS`.

    Anchors and scales of points that the second version saves follow from the config.
    """
    pairs = rt_detr_pairs(authors_names(version), depth)
    return Converter(
        name=f"RT-DETR{'v2' if version == 2 else ''} ResNet-{depth}-vd (lyuwenyu/RT-DETR)",
        config=CONFIGS[version, depth],
        pairs=pairs,
        constants=batch_counters(pairs, depth),
        ignored=("num_batches_tracked", "num_points_scale", "decoder.anchors", "valid_mask"),
    )


def rt_detr_transformers_converter(depth: int = 50, *, version: int = 1) -> Converter:
    """`RTDetrForObjectDetection` or `RTDetrV2ForObjectDetection` of transformers."""
    pairs = tuple(as_transformers_has_it(p) for p in rt_detr_pairs(transformers_names(), depth))
    return Converter(
        name=f"RT-DETR{'v2' if version == 2 else ''} ResNet-{depth}-vd (huggingface/transformers)",
        config=CONFIGS[version, depth],
        pairs=pairs,
        constants=batch_counters(pairs, depth),
        ignored=("num_batches_tracked", "n_points_scale"),
        twin=partial(transformers_rt_detr, version),
    )


def as_transformers_has_it(pair: Pair) -> Pair:
    """The pair with projections of query, key and value apart, and with the names in files."""
    owner, _, kind = pair.source.rpartition(".in_proj_")
    if owner:
        parts = tuple(f"{owner}.{x}_proj.{kind}" for x in "qkv")
        old = tuple(older(part) for part in parts)
        return replace(pair, parts=parts, older_parts=() if old == parts else old)
    old_name = older(pair.source)
    return pair if old_name == pair.source else replace(pair, aliases=(old_name,))


def older(name: str) -> str:
    """The name that a tensor of transformers has in files."""
    for new, old in OLDER:
        name = name.replace(new, old)
    return name
