# SPDX-License-Identifier: Apache-2.0
"""What a process must remember besides weights to go on exactly where it stopped."""

from typing import Any

import torch
from torch import nn

from vastdet.data.random_state import random_state, set_random_state

Scalars = dict[str, int | float]


def scalar_attributes(model: nn.Module) -> Scalars:
    """Numbers that modules hold as plain attributes, such as RetinaNet's running loss normaliser.

    Returns "module.name:attribute" -> value; numbers in 0-d tensors are read out.
    """
    found: Scalars = {}
    for module_name, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.ndim == 0:
                value = value.item()
            if name != "training" and isinstance(value, int | float):
                found[f"{module_name}:{name}"] = value
    return found


class ProcessState:
    """The random generators of this process and the numbers that training wrote into the model."""

    def __init__(self, model: nn.Module) -> None:
        """Take the numbers of a freshly built model, which the config sets, as the baseline."""
        self.model = model
        self._at_start = scalar_attributes(model)

    def state_dict(self) -> dict[str, Any]:
        """The present state, of types that a safe checkpoint may hold."""
        now = scalar_attributes(self.model)
        changed = {k: v for k, v in now.items() if self._at_start.get(k) != v}
        return {"random": random_state(cuda=True), "scalars": changed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state taken by `state_dict` in a process with the same model."""
        modules = dict(self.model.named_modules())
        for key, value in state["scalars"].items():
            module_name, name = key.split(":")
            setattr(modules[module_name], name, value)
        set_random_state(state["random"])
