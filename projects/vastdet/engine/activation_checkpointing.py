# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).

A block keeps only its input during the forward pass and is computed again in the backward pass.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class RecomputedBlock:
    """Mixed in front of a block's class: recompute its forward in the backward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward, checkpointed while training."""
        compute = super().forward  # type: ignore[misc]
        assert isinstance(self, nn.Module)
        if not (self.training and torch.is_grad_enabled()):
            return compute(*args, **kwargs)

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), frozen_statistics(self)

        return checkpoint(compute, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep batch normalisations from counting the same batch twice in the second forward."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, num_batches) in zip(norms, kept, strict=True):
        norm.momentum = 0.0
        if num_batches is not None:
            norm.num_batches_tracked = num_batches.clone()
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = num_batches


def repeated_blocks(backbone: nn.Module) -> list[nn.Module]:
    """The smallest repeated units of a backbone.

    A unit is a child, with children of its own, of an `nn.Sequential` or `nn.ModuleList` that holds
    another of the same class: residual, inverted-residual and transformer blocks alike.
    """
    blocks = []
    for container in backbone.modules():
        if not isinstance(container, nn.Sequential | nn.ModuleList):
            continue
        kinds = [type(child) for child in container]
        for child, kind in zip(container, kinds, strict=True):
            if kinds.count(kind) > 1 and any(True for _ in child.children()):
                blocks.append(child)
    return [
        block
        for block in blocks
        if not any(
            inner is other for other in blocks for inner in block.modules() if inner != block
        )
    ]


def checkpoint_activations(model: nn.Module) -> int:
    """Make every repeated block of `model.backbone` recompute its activations; return how many.

    Parameters, buffers and their names stay as they are. Raises ValueError when the model has no
    backbone or the backbone no repeated block.
    """
    backbone = getattr(model, "backbone", None)
    blocks = repeated_blocks(backbone) if isinstance(backbone, nn.Module) else []
    if not blocks:
        raise ValueError(
            f"MODEL.ACTIVATION_CHECKPOINTING is on, but {type(model).__name__} has no backbone "
            "with repeated blocks to recompute; switch it off."
        )
    for block in blocks:
        kind = type(block)
        block.__class__ = type(kind.__name__, (RecomputedBlock, kind), {})
    return len(blocks)
