# SPDX-License-Identifier: Apache-2.0
"""Deformable DETR and DINO under the names of MMDetection 3 (open-mmlab/mmdetection).

Names were read off its `detectors/deformable_detr.py` and `dino.py`, `layers/transformer/`,
`necks/channel_mapper.py` and the two heads. Differences to the authors' codes: 80 contiguous
classes; a class and a box head for each layer, in DINO too; no bias in the convolutions of the
neck; no unused row in the label embedding; the boxes of DINO's last step are bounded at 1e-5
instead of 1e-3, which moves only boxes with a side or a centre below a thousandth of the image.
"""

import torch

from vastdet.model_zoo.deformable_models import (
    NUM_BOX_LAYERS,
    LayerNames,
    dino_decoder_pairs,
    stack_pairs,
    with_unused_row,
)
from vastdet.model_zoo.key_map import ClassRows, Converter, Layout, ObjectnessRows, Pair
from vastdet.model_zoo.torchvision_models import resnet_pairs, weight_and_bias

NUM_MAPS = 3
NUM_LEVELS = 4
NUM_LAYERS = 6
WIDTH = 256
FEEDFORWARD = {"ffn.linear1": "ffn.layers.0.0", "ffn.linear2": "ffn.layers.1"}
MMDET = LayerNames(
    encoder={
        "self_attn": "self_attn",
        "self_attn_norm": "norms.0",
        **FEEDFORWARD,
        "ffn_norm": "norms.1",
    },
    decoder={
        "self_attn": "self_attn.attn",
        "self_attn_norm": "norms.0",
        "cross_attn": "cross_attn",
        "cross_attn_norm": "norms.1",
        **FEEDFORWARD,
        "ffn_norm": "norms.2",
    },
)
SELECTION = "transformer.query_source.selection"


def common_pairs() -> list[Pair]:
    """Backbone, neck, level embedding, encoder and decoder layers."""
    pairs = resnet_pairs(50, "backbone.", "backbone.")
    pairs += neck_pairs(NUM_MAPS, NUM_LEVELS, bias=False)
    pairs.append(Pair("level_embed", "transformer.to_tokens.level_embedding"))
    return pairs + stack_pairs(MMDET, NUM_LAYERS, NUM_LAYERS, source="")


def neck_pairs(num_maps: int, num_levels: int, *, bias: bool) -> list[Pair]:
    """The level projections: `neck.convs` for the maps, `neck.extra_convs` beyond.

    `bias` says whether the convolutions have one.
    """
    pairs: list[Pair] = []
    for i in range(num_levels):
        theirs = f"neck.convs.{i}" if i < num_maps else f"neck.extra_convs.{i - num_maps}"
        conv = weight_and_bias(f"{theirs}.conv", f"neck.convs.{i}")
        pairs += conv if bias else conv[:1]
        pairs += weight_and_bias(f"{theirs}.gn", f"neck.norms.{i}")
    return pairs


def without_neck_biases() -> dict[str, torch.Tensor]:
    """Zeros for the biases that their neck does not have."""
    return {f"neck.convs.{i}.bias": torch.zeros(WIDTH) for i in range(NUM_LEVELS)}


def head_pairs(index: int, ours: str, *, rows: ClassRows, copies: range = range(0)) -> list[Pair]:
    """The class and box head number `index`, repeated under the numbers of `copies`.

    `ours` has a place for "class_head" or "box_head".
    """
    parts: list[tuple[str, str, ClassRows | None]]
    parts = [("cls_branches.{}", ours.format("class_head"), rows)]
    parts += [
        (f"reg_branches.{{}}.{2 * i}", f"{ours.format('box_head')}.layers.{i}", None)
        for i in range(NUM_BOX_LAYERS)
    ]
    return [
        Pair(
            f"bbox_head.{theirs.format(index)}.{tensor}",
            f"{target}.{tensor}",
            classes=classes,
            copies=tuple(f"bbox_head.{theirs.format(i)}.{tensor}" for i in copies),
        )
        for theirs, target, classes in parts
        for tensor in ("weight", "bias")
    ]


def proposal_pairs(rows: ClassRows) -> list[Pair]:
    """The proposal stage; its heads come after those of the decoder layers."""
    return [
        *weight_and_bias("memory_trans_fc", f"{SELECTION}.output"),
        *weight_and_bias("memory_trans_norm", f"{SELECTION}.output_norm"),
        *head_pairs(NUM_LAYERS, f"{SELECTION}.{{}}", rows=rows),
    ]


def layer_head_pairs() -> list[Pair]:
    """The heads of the decoder layers, each with its own."""
    return [
        pair
        for i in range(NUM_LAYERS)
        for pair in head_pairs(i, f"transformer.decoder.{{}}s.{i}", rows=ClassRows())
    ]


def dino_mmdet_converter() -> Converter:
    """`dino-4scale_r50`."""
    return Converter(
        name="DINO 4-scale ResNet-50 (open-mmlab/mmdetection)",
        config="DINO/dino_R_50_4scale_12ep_mmdet.yaml",
        pairs=(
            *common_pairs(),
            Pair("query_embedding.weight", "transformer.query_source.content.weight"),
            Pair(
                "dn_query_generator.label_embedding.weight",
                "transformer.denoising.label_embedding.weight",
                Layout(with_unused_row, lambda t: t[:-1]),
                classes=ClassRows(),
            ),
            *proposal_pairs(ClassRows()),
            *(
                Pair(pair.source.removeprefix("transformer."), pair.detectron2)
                for pair in dino_decoder_pairs()
            ),
            *layer_head_pairs(),
        ),
        constants=without_neck_biases(),
    )


def deformable_detr_mmdet_converter(variant: str) -> Converter:
    """`deformable-detr_r50`, with `-refine` and `-refine-twostage` for the other variants."""
    source = "transformer.query_source"
    pairs = common_pairs()
    if variant == "two_stage":
        pairs += proposal_pairs(ObjectnessRows())
        pairs += weight_and_bias("pos_trans_fc", f"{source}.position_transform")
        pairs += weight_and_bias("pos_trans_norm", f"{source}.position_norm")
    else:
        pairs.append(Pair("query_embedding.weight", f"{source}.embedding.weight"))
        pairs += weight_and_bias("reference_points_fc", f"{source}.reference_points")
    if variant == "plain":
        shared = "transformer.decoder.{}s.0"
        pairs += head_pairs(0, shared, rows=ClassRows(), copies=range(1, NUM_LAYERS))
    else:
        pairs += layer_head_pairs()
    return Converter(
        name=f"Deformable DETR {variant} ResNet-50 (open-mmlab/mmdetection)",
        config=f"DeformableDETR/deformable_detr_R_50_{variant}_50ep.yaml",
        pairs=tuple(pairs),
        constants=without_neck_biases(),
    )
