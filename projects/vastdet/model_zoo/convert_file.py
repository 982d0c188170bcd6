# SPDX-License-Identifier: Apache-2.0
"""Weight files of other code bases to ours, and back."""

import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from vastdet.engine.checkpoint import read_weights
from vastdet.files import write_atomically
from vastdet.model_zoo.key_map import Converter, StateDict, change_batch_norm_eps
from vastdet.model_zoo.torchvision_models import torchvision_converters

DETECTRON2_EPS = 1e-5  # detectron2.layers.FrozenBatchNorm2d and torch.nn.BatchNorm2d
SUFFIXES = (".safetensors", ".pth")


@dataclass(frozen=True)
class Group:
    """Tensors that share the first parts of their names on both sides."""

    source: str
    target: str
    num_tensors: int
    num_values: int


def find_converter(architecture: str) -> Converter:
    """The converter of a torchvision architecture; ValueError for an unknown one."""
    converters = torchvision_converters()
    if architecture in converters:
        return converters[architecture]
    close = difflib.get_close_matches(architecture, converters, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {list(converters)}"
    raise ValueError(f"no converter for the architecture {architecture!r}; {hint}")


def coco_category_ids() -> list[int]:
    """The 80 COCO ids in use, in the order of Detectron2's contiguous classes."""
    return [category["id"] for category in COCO_CATEGORIES if category["isthing"]]


def convert_from_torchvision(
    path: str | Path,
    output: str | Path,
    converter: Converter,
    *,
    batch_norm_eps: float = DETECTRON2_EPS,
    category_ids: list[int] | None = None,
) -> StateDict:
    """Convert a torchvision weight file into one of ours.

    Args:
        path: .pth (read with `weights_only`) or .safetensors, a state dict or a dict with "model".
        output: .safetensors or .pth, replaced whole.
        converter: of the architecture, see `find_converter`.
        batch_norm_eps: the epsilon of the model the weights were trained in.
        category_ids: class rows to keep, see `Converter.select_categories`; None for all.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unsafe or damaged file, another architecture, or an output name we cannot write.
    """
    _check_output(output, converter)
    state_dict = _read(path)
    if category_ids is not None:
        state_dict = converter.select_categories(state_dict, category_ids)
    state_dict = change_batch_norm_eps(state_dict, batch_norm_eps, DETECTRON2_EPS)
    converted = converter.to_detectron2(state_dict)
    # A backbone goes into models that keep it under different names: let the checkpointer match.
    whole = {} if converter.config else {"matching_heuristics": True}
    _write(output, converted, {"__author__": "torchvision", **whole})
    return converted


def convert_to_torchvision(
    path: str | Path,
    output: str | Path,
    converter: Converter,
    *,
    batch_norm_eps: float = DETECTRON2_EPS,
) -> StateDict:
    """Convert one of our weight files into a torchvision state dict; the reverse of the above."""
    _check_output(output, None)
    state_dict = change_batch_norm_eps(_read(path), DETECTRON2_EPS, batch_norm_eps)
    converted = converter.from_detectron2(state_dict)
    _write(output, converted, None)
    return converted


def summarise(converter: Converter, converted: StateDict, depth: int = 3) -> list[Group]:
    """Groups of converted tensors by the first `depth` parts of their names, in model order."""
    tensors: Counter[tuple[str, str]] = Counter()
    values: Counter[tuple[str, str]] = Counter()
    for pair in converter.pairs:
        tensor = converted[pair.detectron2 if pair.detectron2 in converted else pair.source]
        group = (_head(pair.source, depth), _head(pair.detectron2, depth))
        tensors[group] += 1
        values[group] += tensor.numel()
    return [Group(*names, count, values[names]) for names, count in tensors.items()]


def _head(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:-1][:depth])


def _check_output(output: str | Path, converter: Converter | None) -> None:
    suffix = Path(output).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"cannot write {output}: its name must end in {' or '.join(SUFFIXES)}")
    if converter is not None and not converter.config and suffix != ".pth":
        raise ValueError(
            f"cannot write {output}: a backbone's weights are matched to the model by their names' "
            "endings, which only a .pth file can ask for; give it that ending"
        )


def _read(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    weights = read_weights(str(path))["model"]
    return {name: torch.as_tensor(value) for name, value in weights.items()}


def _write(output: str | Path, weights: StateDict, extra: dict[str, object] | None) -> None:
    output = Path(output)
    if output.suffix == ".safetensors":
        write_atomically(output, safetensors.torch.save(weights))
    else:
        wrapped = weights if extra is None else {"model": weights, **extra}
        write_atomically(output, lambda file: torch.save(wrapped, file))
