# SPDX-License-Identifier: Apache-2.0
"""The weights of a training checkpoint alone, small enough to hand on."""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from vastdet.engine.checkpoint import check_exists, read_weights
from vastdet.files import write_atomically

# The one metadata key: safetensors writes several in no fixed order.
METADATA = "vastdet.Weights"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ExportedWeights:
    """What was written.

    Attributes:
        weights: name -> tensor.
        iteration: the last one of the training, None where the checkpoint does not say.
        averaged: whether they are the moving average of a training with SOLVER.EMA.
    """

    weights: dict[str, Tensor]
    iteration: int | None
    averaged: bool


def export_weights(path: str | Path, output: str | Path, *, half: bool = False) -> ExportedWeights:
    """Write the weights to use of a checkpoint to a .safetensors file, whole or not at all.

    Where SOLVER.EMA was on, these are the average. The metadata have the iteration and whether
    they are averaged, as JSON under "vastdet.Weights"; equal weights make equal files.

    Args:
        path: a checkpoint of our trainer, or another file of weights that `read_weights` reads.
        output: the file.
        half: floating-point tensors in float16, which models of float32 load as well; integers
            stay as they are.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, unsafe or holds other things than tensors; its names are those of
            another program; a value is not finite or too large for float16; or the output is to end
            otherwise.
    """
    if Path(output).suffix != SUFFIX:
        raise ValueError(f"weights are exported as {SUFFIX}, but the output is {output}")
    check_exists(str(path))
    content = read_weights(str(path))
    odd = [k for k, x in content["model"].items() if not hasattr(x, "shape")]
    if odd or not content["model"]:
        raise ValueError(
            f"{path} holds {f'{odd[:3]}, which are no tensors' if odd else 'no weights'}; expected "
            "a checkpoint of tools/train_net.py"
        )
    if content.get("matching_heuristics"):
        raise ValueError(
            f"the names in {path} are matched with those of a model by their endings, which a "
            f"{SUFFIX} file cannot ask for; use the file as it is, or export a checkpoint of "
            "tools/train_net.py"
        )
    tensors = {name: torch.as_tensor(x) for name, x in content["model"].items()}
    # A copy each: the format keeps no two names of one tensor.
    weights = {name: _exported(name, x, half).contiguous().clone() for name, x in tensors.items()}
    iteration = content.get("iteration")
    averaged = "training_model" in content
    about = json.dumps({"iteration": iteration, "averaged": averaged})
    write_atomically(output, safetensors.torch.save(weights, {METADATA: about}))
    return ExportedWeights(weights, iteration, averaged)


def _exported(name: str, tensor: Tensor, half: bool) -> Tensor:
    """A tensor in the precision of the file."""
    if not tensor.is_floating_point():
        return tensor
    if not tensor.isfinite().all():
        raise ValueError(f"{name} has values that are not finite; take an earlier checkpoint")
    if not half:
        return tensor
    halved = tensor.half()
    if not halved.isfinite().all():
        raise ValueError(
            f"{name} has values up to {tensor.abs().max().item():.4g}, float16 ends at "
            f"{torch.finfo(torch.float16).max:.0f}; export in full precision"
        )
    return halved
