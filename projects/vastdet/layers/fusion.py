# SPDX-License-Identifier: Apache-2.0
"""Convolutions that take up the batch norms after them: less to compute at inference.

O output channels.
"""

import copy
import re
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

# torch's, and the frozen ones of timm and Detectron2, none of which holds an activation.
NORMS = ("BatchNorm2d", "FrozenBatchNorm2d")


def fused(model: nn.Module) -> nn.Module:
    """A copy for inference that computes the same with fewer passes over the maps.

    A module with a method `fused` is replaced by what that returns. In all others a convolution
    takes up the batch norm that follows it in an `nn.Sequential`, that is named `bnN` beside
    `convN`, as in timm's ResNets, or that it holds as `norm`, as Detectron2's do. Weights of
    convolutions are laid out channels last. The copy is not for training: its norms are gone, and
    no parameter wants a gradient.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        _fuse_children(model)
    return model.to(memory_format=torch.channels_last)


def fold(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """One convolution with a bias in place of a convolution and a batch norm at inference."""
    scale, shift = scale_and_shift(norm)
    result = copy.deepcopy(conv)
    if hasattr(result, "norm"):
        result.norm = None
    bias = torch.zeros_like(shift) if conv.bias is None else conv.bias.double()
    weight = conv.weight.double() * scale[:, None, None, None]
    result.weight = nn.Parameter(weight.to(conv.weight), requires_grad=False)
    result.bias = nn.Parameter((bias * scale + shift).to(conv.weight), requires_grad=False)
    return result


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies with and then adds at inference, both (O,) in float64."""
    weight, bias, mean, variance = (
        getattr(norm, name).double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (variance + norm.eps).sqrt()
    return scale, bias - mean * scale


def _fuse_children(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        if hasattr(child, "fused"):
            parent.set_submodule(name, child.fused())
        elif isinstance(child, nn.Conv2d) and type(getattr(child, "norm", None)).__name__ in NORMS:
            parent.set_submodule(name, fold(child, child.norm))
        else:
            _fuse_children(child)
    for conv_name, norm_name in list(_followers(parent)):
        holder, conv = parent, parent.get_submodule(conv_name)
        if isinstance(conv, nn.Sequential) and len(conv):
            # A stem of several convolutions, the last of which meets the norm.
            holder, conv_name = conv, str(len(conv) - 1)
            conv = holder.get_submodule(conv_name)
        norm = parent.get_submodule(norm_name)
        if isinstance(conv, nn.Conv2d) and type(norm).__name__ in NORMS:
            holder.set_submodule(conv_name, fold(conv, norm))
            parent.set_submodule(norm_name, nn.Identity())


def _followers(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of children of which the second reads what the first gives."""
    names = [name for name, _ in parent.named_children()]
    if isinstance(parent, nn.Sequential):
        yield from pairwise(names)
        return
    for name in names:
        if re.fullmatch(r"conv\d+", name) and name.replace("conv", "bn") in names:
            yield name, name.replace("conv", "bn")
