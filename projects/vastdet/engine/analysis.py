# SPDX-License-Identifier: Apache-2.0
"""Parameters, floating point operations and activations of a model, by module.

fvcore counts along a trace of the model on one random image. One multiply-add counts as one flop,
as in the tables of most papers. Operators that fvcore has no rule for are not counted: they are
listed with how often each ran. The counts of a two-stage model depend on how many proposals and
detections the image gives.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from detectron2.export import TracingAdapter
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis
from torch import nn

from vastdet.engine.model_inputs import random_inputs


@dataclass
class ModuleCounts:
    """One module's parameters and, for one image, its flops and activations (output elements)."""

    name: str
    kind: str
    num_parameters: int = 0
    num_trainable: int = 0
    num_flops: int = 0
    num_activations: int = 0

    @property
    def depth(self) -> int:
        """0 for the model itself."""
        return self.name.count(".") + 1 if self.name else 0


@dataclass(frozen=True)
class Analysis:
    """Counts for one image of `image_size` (height, width): the model first, then its modules."""

    image_size: tuple[int, int]
    modules: list[ModuleCounts]
    flops_by_operator: dict[str, int] = field(default_factory=dict)
    not_counted: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> ModuleCounts:
        """The whole model."""
        return self.modules[0]


def count_parameters(model: nn.Module, max_depth: int = 2) -> list[ModuleCounts]:
    """Parameters of the model and of its modules down to `max_depth`; shared ones once a module."""
    rows = []
    for name, module in model.named_modules():
        row = ModuleCounts(name, type(module).__name__)
        if row.depth > max_depth:
            continue
        parameters = list(module.parameters())
        row.num_parameters = sum(p.numel() for p in parameters)
        row.num_trainable = sum(p.numel() for p in parameters if p.requires_grad)
        rows.append(row)
    return rows


def analyze(
    model: nn.Module, cfg: CfgNode, *, image_size: tuple[int, int], max_depth: int = 2
) -> Analysis:
    """Count a detector's work on one random image at inference.

    Args:
        model: a Detectron2 model built from `cfg`; its training mode is kept.
        cfg: tells what inputs the model takes.
        image_size: (height, width) in pixels, as the model sees them.
        max_depth: list modules down to so many dots.

    Raises:
        ValueError: `image_size` is not positive or `max_depth` negative.
    """
    if max_depth < 0:
        raise ValueError(f"max_depth must be at least 0, got {max_depth}")
    (record,) = random_inputs(cfg, batch_size=1, image_size=image_size)
    inputs = [{k: record[k] for k in ("image", "proposals") if k in record}]
    was_training = model.training
    model.eval()
    try:
        with quiet_tracing(), torch.no_grad():
            flops = FlopCountAnalysis(model, inputs)
            adapter = TracingAdapter(model, inputs, allow_non_tensor=True)
            activations = ActivationCountAnalysis(adapter, adapter.flattened_inputs)
            for counter in (flops, activations):
                counter.unsupported_ops_warnings(False)
                counter.uncalled_modules_warnings(False)
            flops_of, activations_of = flops.by_module(), activations.by_module()
    finally:
        model.train(was_training)
    rows = count_parameters(model, max_depth)
    for row in rows:
        # Tracing wraps the model as the module "model".
        traced = f"model.{row.name}" if row.name else ""
        row.num_flops = int(flops_of.get(traced, 0))
        row.num_activations = int(activations_of.get(traced, 0))
    return Analysis(
        image_size,
        rows,
        {name: int(count) for name, count in flops.by_operator().most_common() if count},
        dict(Counter(flops.unsupported_ops()).most_common()),
    )


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Keep back torch's notes on tracing and on its deprecation; errors still come through."""
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
