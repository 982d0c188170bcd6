# SPDX-License-Identifier: Apache-2.0
"""Weight files of other code bases to ours, and back."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_backbone, build_model
from torch import Tensor

from vastdet.engine.checkpoint import read_weights
from vastdet.engine.config_files import (
    class_count_key,
    load_config,
    set_num_classes,
    value_of,
    without_pretrained,
)
from vastdet.files import write_atomically
from vastdet.model_zoo.config_files import get_config_file
from vastdet.model_zoo.key_map import Converter, StateDict, change_batch_norm_eps
from vastdet.model_zoo.probe import compare

DETECTRON2_EPS = 1e-5  # detectron2.layers.FrozenBatchNorm2d and torch.nn.BatchNorm2d
SUFFIXES = (".safetensors", ".pth")
# Where a checkpoint has the moving average of its weights, in RT-DETR, DINO, timm and detrex.
AVERAGES = ("ema", "ema_model", "model_ema", "ema_state")
WRAPPERS = ("module", "model", "state_dict")
PARALLEL_PREFIX = "module."


@dataclass(frozen=True)
class Group:
    """Tensors that share the first parts of their names on both sides."""

    source: str
    target: str
    num_tensors: int
    num_values: int


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        converter: the table that was used.
        ours: the state dict of the Detectron2 model.
        theirs: the state dict of the other code base.
        cfg: the config of the model, None for a bare backbone.
        overrides: KEY VALUE ... that the config needs besides.
    """

    converter: Converter
    ours: StateDict
    theirs: StateDict
    cfg: CfgNode | None
    overrides: tuple[str, ...] = ()


def coco_category_ids() -> list[int]:
    """The 80 COCO ids in use, in the order of Detectron2's contiguous classes."""
    return [category["id"] for category in COCO_CATEGORIES if category["isthing"]]


def convert_to_ours(
    path: str | Path,
    output: str | Path,
    converter: Converter,
    *,
    overrides: Sequence[str] = (),
    batch_norm_eps: float = DETECTRON2_EPS,
    category_ids: list[int] | None = None,
    averaged: bool | None = None,
) -> Conversion:
    """Convert a weight file of another code base into one of ours.

    Args:
        path: .safetensors, or .pth that is read with `weights_only`; see `source_weights`.
        output: .safetensors or .pth, replaced whole.
        converter: of the network, see `registry.find_converter`.
        overrides: KEY VALUE ... for a network that differs from the converter's config; of a bare
            backbone, for the one that shall have the weights, such as one of another window.
        batch_norm_eps: the epsilon of the model the weights were trained in.
        category_ids: class rows to keep, see `Converter.select_categories`; None for all.
        averaged: take the moving average of the weights; see `source_weights`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unsafe or damaged file; a tensor missing, left over or of another shape; or an
            output name we cannot write.
    """
    _check_output(output, is_backbone=not converter.config)
    weights = converter.canonical(source_weights(path, averaged=averaged))
    if category_ids is not None:
        weights = converter.select_categories(weights, category_ids)
    cfg, needed = model_config(converter, weights, overrides)
    converter.check(weights, expected_tensors(converter, cfg))
    theirs = converter.from_detectron2(converter.to_detectron2(weights))
    ours = converter.to_detectron2(
        change_batch_norm_eps(weights, batch_norm_eps, DETECTRON2_EPS)
        if batch_norm_eps != DETECTRON2_EPS
        else weights
    )
    extra: dict[str, object] = {"__author__": converter.name}
    written = ours
    if not converter.config:
        ours = _fitted(converter, ours, overrides)
        # What was not in their file starts anew. Short names would match other parts of a detector.
        written = {name: t for name, t in ours.items() if name not in converter.constants}
        # It goes into models that keep it under different names: let the checkpointer match.
        extra["matching_heuristics"] = True
    _write(output, written, extra)
    return Conversion(converter, ours, theirs, cfg, needed)


def _fitted(converter: Converter, ours: StateDict, overrides: Sequence[str]) -> StateDict:
    """The tensors of a bare backbone in the shapes that KEY VALUE overrides ask for."""
    if not overrides:
        return ours
    model = expected_tensors(converter, None, overrides)
    fitted = ours if converter.fit is None else converter.fit(ours, model)
    wrong = [n for n, t in fitted.items() if n not in model or t.shape != model[n].shape]
    if wrong or len(model) != len(fitted):
        raise ValueError(
            f"the overrides {list(overrides)} ask for another network than {converter.name}: "
            f"{wrong[:3] or 'it has more tensors'}; leave them out"
        )
    return fitted


def convert_to_theirs(
    path: str | Path,
    output: str | Path,
    converter: Converter,
    *,
    batch_norm_eps: float = DETECTRON2_EPS,
) -> Conversion:
    """Convert one of our weight files into a state dict of the other code base."""
    _check_output(output)
    ours = source_weights(path)
    theirs = converter.from_detectron2(ours)
    theirs = change_batch_norm_eps(theirs, DETECTRON2_EPS, batch_norm_eps)
    _write(output, theirs, None)
    return Conversion(converter, ours, theirs, None)


def source_weights(path: str | Path, *, averaged: bool | None = None) -> StateDict:
    """The tensors of a weight file, out of what they are wrapped in.

    They may stand alone or below "model", "state_dict" or, the moving average, one of `AVERAGES`,
    and may all have the prefix of a parallel wrapper.

    Args:
        path: .safetensors, or .pth that is read with `weights_only`.
        averaged: take the moving average, or the weights themselves; needed where a file has both.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unsafe or damaged file, no average though asked for, both without a choice, or
            something that is no tensor among the weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    content = read_weights(str(path))
    weights = content["model"]
    averages = [found[key] for found in (content, weights) for key in AVERAGES if key in found]
    has_others = any(_is_array(value) for value in weights.values())
    if averages and has_others and averaged is None:
        raise ValueError(
            f"{path} holds weights and their moving average, which differ in what they detect: say "
            "--ema or --no-ema"
        )
    if averages and (averaged or not has_others):
        weights = averages[0]
    elif averaged:
        raise ValueError(
            f"{path} holds no moving average of weights, which would stand under one of {AVERAGES};"
            f" it holds {sorted(content)}. Leave --ema out"
        )
    while isinstance(inner := next((weights[k] for k in WRAPPERS if k in weights), None), Mapping):
        weights = inner
    if all(name.startswith(PARALLEL_PREFIX) for name in weights):
        weights = {name.removeprefix(PARALLEL_PREFIX): value for name, value in weights.items()}
    odd = [name for name, value in weights.items() if not _is_array(value)]
    if odd or not weights:
        raise ValueError(
            f"{path} holds no plain state dict: {odd[:5] or 'it is empty'}"
            f"{' are no tensors' if odd else ''}; expected names and tensors, alone or below "
            "'model' or 'state_dict'"
        )
    return {name: torch.as_tensor(value) for name, value in weights.items()}


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def model_config(
    converter: Converter, weights: StateDict, overrides: Sequence[str] = ()
) -> tuple[CfgNode | None, tuple[str, ...]]:
    """The config for weights under the other code base's names, and the overrides it needs.

    These are the given ones, and the number of classes where it is not the config's. None for a
    bare backbone.
    """
    if not converter.config:
        return None, ()
    cfg = load_config(get_config_file(converter.config), list(overrides))
    num_classes = converter.num_classes(weights)
    key = class_count_key(cfg)
    if num_classes is None or num_classes == value_of(cfg, key):
        return cfg, tuple(overrides)
    set_num_classes(cfg, num_classes)
    return cfg, (*overrides, key, str(num_classes))


def expected_tensors(
    converter: Converter, cfg: CfgNode | None, overrides: Sequence[str] = ()
) -> StateDict:
    """The state dict, without values, of the model of a config or, where it is None, the backbone.

    `overrides` are KEY VALUE ... of the backbone.
    """
    cfg = load_config(None, [*converter.backbone, *overrides]) if cfg is None else cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        if converter.config:
            without_pretrained(cfg)
            if converter.without_data is not None:
                converter.without_data(cfg)
            return build_model(cfg).state_dict()
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        return build_backbone(cfg).state_dict()


def differences(
    conversion: Conversion, *, batch_norm_eps: float = DETECTRON2_EPS
) -> tuple[dict[str, float], str]:
    """The largest differences of outputs to the other code base, or why there are none."""
    name = conversion.converter.name
    if conversion.cfg is None:
        return {}, "not compared: a backbone alone has no detections"
    if conversion.converter.twin is None:
        return {}, f"not compared: the code behind {name} is no package that can be imported"
    try:
        found = compare(
            conversion.converter,
            conversion.cfg,
            conversion.ours,
            conversion.theirs,
            batch_norm_eps=batch_norm_eps,
        )
    except ImportError as error:
        return {}, f"not compared: the code behind {name} is not installed ({error})"
    return found, ""


def summarise(conversion: Conversion, depth: int = 3) -> list[Group]:
    """Groups of converted tensors by the first `depth` parts of their names, in model order."""
    tensors: Counter[tuple[str, str]] = Counter()
    values: Counter[tuple[str, str]] = Counter()
    for pair in conversion.converter.pairs:
        group = (_head(pair.source, depth), _head(pair.detectron2, depth))
        tensors[group] += 1
        values[group] += conversion.ours[pair.detectron2].numel()
    return [Group(*names, count, values[names]) for names, count in tensors.items()]


def _head(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:-1][:depth])


def _check_output(output: str | Path, *, is_backbone: bool = False) -> None:
    suffix = Path(output).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"cannot write {output}: its name must end in {' or '.join(SUFFIXES)}")
    if is_backbone and suffix != ".pth":
        raise ValueError(
            f"cannot write {output}: a backbone's weights are matched to the model by their names' "
            "endings, which only a .pth file can ask for; give it that ending"
        )


def _write(output: str | Path, weights: StateDict, extra: dict[str, object] | None) -> None:
    output = Path(output)
    if output.suffix == ".safetensors":
        # It keeps no two names of one tensor.
        own: dict[str, Tensor] = {name: tensor.clone() for name, tensor in weights.items()}
        write_atomically(output, safetensors.torch.save(own))
    else:
        wrapped = weights if extra is None else {"model": weights, **extra}
        write_atomically(output, lambda file: torch.save(wrapped, file))
