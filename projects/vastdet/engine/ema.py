# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights of a model."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """Averages every floating-point parameter and buffer; copies the others.

    After update t (from 1) an averaged value is d * average + (1 - d) * value with
    d = decay * (1 - exp(-t / warmup)), the ramp of RT-DETR's published training recipe (Zhao et
    al., "DETRs Beat YOLOs on Real-time Object Detection", 2024). A warm-up of 0 means d = decay.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: float) -> None:
        """Raises ValueError for a decay outside [0, 1) or a negative warm-up."""
        if not 0.0 <= decay < 1.0 or warmup < 0:
            raise ValueError(
                f"SOLVER.EMA has DECAY {decay} and WARMUP {warmup}; "
                "expected DECAY in [0, 1) and WARMUP of at least 0 updates."
            )
        self.model = model
        self.decay = decay
        self.warmup = warmup
        self.num_updates = 0
        self.weights: dict[str, torch.Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Start again from the present weights of the model."""
        self.num_updates = 0
        self.weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def current_decay(self) -> float:
        """The decay of the latest update."""
        if self.warmup == 0:
            return self.decay
        return self.decay * (1.0 - math.exp(-self.num_updates / self.warmup))

    @torch.no_grad()
    def update(self) -> None:
        """Fold the present weights of the model into the average."""
        self.num_updates += 1
        new_share = 1.0 - self.current_decay()
        for name, value in self.model.state_dict().items():
            average = self.weights[name]
            if average.is_floating_point():
                average.lerp_(value, new_share)
            else:
                average.copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run a block of code with the averaged weights in the model, then put its own back."""
        own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates."""
        return {"weights": self.weights, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over an average saved by `state_dict`; its names must be those of the model."""
        assert state["weights"].keys() == self.weights.keys()
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)
        self.num_updates = state["num_updates"]
