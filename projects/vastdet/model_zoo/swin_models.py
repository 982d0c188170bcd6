# SPDX-License-Identifier: Apache-2.0
"""Swin transformers under the names of Microsoft, timm, transformers and MMDetection.

Names were read off the modules of timm 1.0, transformers 5.23 and older, Microsoft's
`swin_transformer.py` (whose names Detectron2 kept) and MMDetection 3. All are the same network but
for the order in which MMDetection's patch merging puts its inputs. What a classifier has besides,
its last norm and its head, is left out, and the norms of the maps start anew, as in the training
of Microsoft's detectors.

C channels of a stage, * further axes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vastdet.backbones.swin import SIZES
from vastdet.model_zoo.key_map import SAME, Converter, Layout, Pair, StateDict
from vastdet.model_zoo.torchvision_models import weight_and_bias

TABLE = "relative_position_bias_table"
# What follows from the window and the size of the image.
BUFFERS = ("relative_position_index", "attn_mask")
# Windows that weights were published for.
WINDOWS = {"T": (7,), "S": (7,), "B": (7, 12), "L": (7, 12)}


class SwinNames(NamedTuple):
    """The names of one code base; `{i}` is the stage and `{j}` the block.

    Attributes:
        patch: the convolution of the patches.
        patch_norm: its norm.
        block: a block.
        layers: names inside a block, by ours.
        table: the biases of relative positions inside a block.
        merging: the patch merging after stage i.
        output_norm: the norm of the map of stage i.
        unused: of a classifier, names of modules that a backbone lacks.
        older: names inside a block in older releases, by ours; empty where they did not change.
        qkv_parts: names inside a block of query, key and value, where they are three tensors.
        older_qkv_parts: the same in older releases.
    """

    patch: str = "patch_embed.proj"
    patch_norm: str = "patch_embed.norm"
    block: str = "layers.{i}.blocks.{j}."
    layers: Mapping[str, str] = {}
    table: str = f"attn.{TABLE}"
    merging: str = "layers.{i}.downsample"
    output_norm: str = "norm{i}"
    unused: tuple[str, ...] = ()
    older: Mapping[str, str] = {}
    qkv_parts: tuple[str, ...] = ()
    older_qkv_parts: tuple[str, ...] = ()


LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
MICROSOFT = SwinNames(unused=("norm", "head"))
# It merges at the start of the next stage.
TIMM = SwinNames(merging="layers.{next}.downsample", unused=("norm", "head.fc"))
MMDET = SwinNames(
    patch="patch_embed.projection",
    block="stages.{i}.blocks.{j}.",
    layers={
        "attn.qkv": "attn.w_msa.qkv",
        "attn.proj": "attn.w_msa.proj",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
    },
    table=f"attn.w_msa.{TABLE}",
    merging="stages.{i}.downsample",
)
TRANSFORMERS = SwinNames(
    patch="swin.embeddings.patch_embeddings.projection",
    patch_norm="swin.embeddings.norm",
    block="swin.encoder.layers.{i}.blocks.{j}.",
    layers={
        "norm1": "layernorm_before",
        "attn.proj": "attention.o_proj",
        "norm2": "layernorm_after",
    },
    table=f"attention.relative_position_bias.{TABLE}",
    merging="swin.encoder.layers.{i}.downsample",
    output_norm="hidden_states_norms.stage{next}",
    unused=("swin.layernorm", "classifier"),
    older={
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        TABLE: f"attention.self.{TABLE}",
    },
    qkv_parts=tuple(f"attention.{x}_proj" for x in "qkv"),
    older_qkv_parts=tuple(f"attention.self.{x}" for x in ("query", "key", "value")),
)


def unfolded_merging() -> Layout:
    """Inputs of a patch merging [*, 4C]: in MMDetection by channel and then place (row, column).

    Here and elsewhere they come by place, (0, 0), (1, 0), (0, 1), (1, 1), and then channel.
    """
    # Swaps the two middle places, so it undoes itself.
    order = [0, 2, 1, 3]
    return Layout(
        lambda t: t.unflatten(-1, (-1, 4))[..., order].transpose(-1, -2).flatten(-2),
        lambda t: t.unflatten(-1, (4, -1))[..., order, :].transpose(-1, -2).flatten(-2),
    )


def swin_pairs(
    names: SwinNames,
    depths: Sequence[int],
    source: str = "",
    detectron2: str = "",
    *,
    output_norms: Sequence[int] = (),
    merging: Layout = SAME,
) -> list[Pair]:
    """Every tensor of a Swin.

    Args:
        names: of the other code base.
        depths: blocks of each stage.
        source: prefix of their names.
        detectron2: prefix of ours, such as "backbone.bottom_up.".
        output_norms: the stages, from 0, whose maps have a norm.
        merging: of the inputs of a patch merging, `unfolded_merging()` in MMDetection.
    """
    pairs = [
        *weight_and_bias(source + names.patch, f"{detectron2}patch_embed.proj"),
        *weight_and_bias(source + names.patch_norm, f"{detectron2}patch_embed.norm"),
    ]
    for i, depth in enumerate(depths):
        for j in range(depth):
            block = source + names.block.format(i=i, j=j)
            pairs += _block_pairs(names, block, f"{detectron2}layers.{i}.blocks.{j}.")
        if i < len(depths) - 1:
            theirs = source + names.merging.format(i=i, next=i + 1)
            ours = f"{detectron2}layers.{i}.downsample"
            pairs += weight_and_bias(f"{theirs}.norm", f"{ours}.norm", layout=merging)
            reduction = "reduction.weight"
            pairs.append(Pair(f"{theirs}.{reduction}", f"{ours}.{reduction}", merging))
    for i in output_norms:
        theirs = source + names.output_norm.format(i=i, next=i + 1)
        pairs += weight_and_bias(theirs, f"{detectron2}norm{i}")
    return pairs


def _block_pairs(names: SwinNames, source: str, detectron2: str) -> list[Pair]:
    pairs = []
    for layer in LAYERS:
        if layer == "attn.qkv" and names.qkv_parts:
            pairs += _qkv_pairs(names, source, detectron2)
            continue
        theirs = source + names.layers.get(layer, layer)
        older = source + names.older[layer] if layer in names.older else ""
        pairs += weight_and_bias(theirs, detectron2 + layer, alias=older)
    aliases = (source + names.older[TABLE],) if TABLE in names.older else ()
    pairs.append(Pair(source + names.table, f"{detectron2}attn.{TABLE}", aliases=aliases))
    return pairs


def _qkv_pairs(names: SwinNames, source: str, detectron2: str) -> list[Pair]:
    """Query, key and value are one tensor here and three there."""
    return [
        Pair(
            f"{source}attention.qkv.{tensor}",
            f"{detectron2}attn.qkv.{tensor}",
            parts=tuple(f"{source}{part}.{tensor}" for part in names.qkv_parts),
            older_parts=tuple(f"{source}{part}.{tensor}" for part in names.older_qkv_parts),
        )
        for tensor in ("weight", "bias")
    ]


def resize_bias_tables(weights: StateDict, model: Mapping[str, Tensor]) -> StateDict:
    """Fit tables of position biases to a model with another window, by bicubic interpolation.

    As timm and Microsoft's detectors do; a window of 12 instead of 7 turns 169 rows into 529.

    Args:
        weights: of a Swin under our names.
        model: the state dict of the model that shall have them, of any device.
    """
    # timm takes seconds to import.
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

    resized = dict(weights)
    for name, tensor in weights.items():
        if not name.endswith(TABLE) or name not in model or tensor.shape == model[name].shape:
            continue
        rows = len(model[name])
        window = (round(rows**0.5) + 1) // 2
        shape = (rows, tensor.shape[1])
        table = resize_rel_pos_bias_table_simple(tensor.float(), (window, window), shape)
        resized[name] = table.to(tensor.dtype).contiguous()
    return resized


def swin_converter(
    size: str, window: int, names: SwinNames, code: str, *, prefix: str = ""
) -> Converter:
    """The trunk of a classifier, under the names of a Detectron2 backbone.

    Args:
        size: a key of `SIZES`.
        window: tokens on the side of a window.
        names: of the other code base.
        code: its name, for messages.
        prefix: of its names.
    """
    depths = SIZES[size].depths
    last = len(depths) - 1
    merging = unfolded_merging() if names is MMDET else SAME
    # Of MMDetection the norm of the last map is the classifier's.
    unused = names.unused or (names.output_norm.format(i=last), "head.fc")
    channels = SIZES[size].embed_dim * 2**last
    return Converter(
        name=f"Swin-{size}, window {window} ({code})",
        config="",
        pairs=tuple(swin_pairs(names, depths, prefix, merging=merging)),
        constants={
            f"norm{last}.weight": torch.ones(channels),
            f"norm{last}.bias": torch.zeros(channels),
        },
        ignored=BUFFERS,
        unused=tuple(
            f"{place}{module}.{tensor}"
            for module in unused
            for place in {"", prefix}
            for tensor in ("weight", "bias")
        ),
        backbone=(
            *("MODEL.BACKBONE.NAME", "build_swin_backbone", "MODEL.SWIN.SIZE", size),
            *("MODEL.SWIN.WINDOW_SIZE", window, "MODEL.SWIN.OUT_FEATURES", [f"res{last + 2}"]),
        ),
        fit=resize_bias_tables,
    )


CONVERTERS = {
    f"swin_{size}_window{window}{ending}": partial(
        swin_converter, size, window, names, code, prefix=prefix
    )
    for size, windows in WINDOWS.items()
    for window in windows
    for ending, names, code, prefix in (
        ("", MICROSOFT, "microsoft/Swin-Transformer", ""),
        ("_timm", TIMM, "timm", ""),
        ("_transformers", TRANSFORMERS, "transformers", ""),
        ("_mmdet", MMDET, "open-mmlab/mmdetection", "backbone."),
    )
}
