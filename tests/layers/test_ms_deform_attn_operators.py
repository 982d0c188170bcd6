# SPDX-License-Identifier: Apache-2.0
"""The compiled operators, on each device: what they refuse, and what memory they take."""

from collections.abc import Callable

import pytest
import torch
from tests.layers.ms_deform_attn_inputs import DIFFERENTIABLE, gradients, make
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vastdet.layers import ms_deform_attn
from vastdet.layers.ms_deform_attn_reference import ms_deform_attn_reference


def huge(*sizes: int) -> Tensor:
    """A tensor of any size that holds one element."""
    return torch.zeros(()).expand(sizes)


# What the function of the same name checks before, and the operators check again.
WRONG = {
    "value of 3 dimensions": (0, torch.zeros(2, 48, 64), r"value must be \(B, S, H, D\)"),
    "value of integers": (0, torch.zeros(2, 48, 2, 32).long(), "float32, float64, bfloat16"),
    "value of another type": (0, torch.zeros(2, 48, 2, 32).double(), "must be Double"),
    "value of too many cells": (0, huge(2, 1 << 30, 2, 32), "is too large"),
    "shapes of another type": (1, torch.ones(3, 2), "must be int64 on"),
    "shapes of fewer levels": (1, torch.ones(2, 2).long(), r"spatial_shapes must be \(3, 2\)"),
    "starts of another type": (2, torch.zeros(3), "must be int64 on"),
    "starts of more levels": (2, torch.zeros(4).long(), r"level_start_index \(3\)"),
    "locations of more samples": (3, torch.zeros(2, 6, 2, 8, 2), r"must be \(2, Q, 2, 7, 2\)"),
    "locations of 4 dimensions": (3, torch.zeros(2, 6, 2, 7), "sampling_locations must be"),
    "locations of another type": (3, torch.zeros(2, 6, 2, 7, 2).half(), "must be Float"),
    "weights of another image count": (4, torch.zeros(1, 6, 2, 7), "attention_weights"),
    "weights of another type": (4, torch.zeros(2, 6, 2, 7).double(), "must be Float"),
    "fewer than no points": (5, [4, -1, 4], "num_points must not be negative"),
}


@pytest.mark.parametrize("name", WRONG)
def test_operators_explain_wrong_arguments(compiled_device: str, name: str) -> None:
    index, wrong, message = WRONG[name]
    arguments = list(make(device=compiled_device))
    arguments[index] = wrong.to(compiled_device) if isinstance(wrong, Tensor) else wrong
    grad_output = torch.zeros(2, 6, 64, device=compiled_device)
    with pytest.raises(ValueError, match=message):
        torch.ops.vastdet.ms_deform_attn(*arguments)
    with pytest.raises(ValueError, match=message):
        torch.ops.vastdet.ms_deform_attn_backward(grad_output, *arguments)


@pytest.mark.parametrize(
    "grad_output", [torch.zeros(2, 6, 65), torch.zeros(2, 64), torch.zeros(2, 6, 64).double()]
)
def test_backward_explains_a_wrong_gradient(compiled_device: str, grad_output: Tensor) -> None:
    arguments = make(device=compiled_device)
    with pytest.raises(ValueError, match=r"grad_output must be \(2, 6, 64\) of"):
        torch.ops.vastdet.ms_deform_attn_backward(grad_output.to(compiled_device), *arguments)


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The largest sum of what `run` holds at once in tensors that it allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    kind = torch.autograd.DeviceType.CUDA if device == "cuda" else torch.autograd.DeviceType.CPU
    sizes = [
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]" and event.device_type() == kind
    ]
    held = peak = 0
    for _, size in sorted(sizes, key=lambda pair: pair[0]):
        held += size
        peak = max(peak, held)
    return peak


def test_memory_is_a_fifth_of_grid_sample(compiled_device: str) -> None:
    levels = [(40, 50), (20, 25), (10, 13), (5, 7)]
    arguments = make(1, 2665, 8, 32, levels, [4] * 4, device=compiled_device)
    grad_output = torch.ones(1, 2665, 256, device=compiled_device)
    leaves = [x.requires_grad_() if i in DIFFERENTIABLE else x for i, x in enumerate(arguments)]

    def forward(function: Callable[..., Tensor]) -> int:
        with torch.no_grad():
            return peak_bytes(lambda: function(*arguments), compiled_device)

    def training(function: Callable[..., Tensor]) -> int:
        return peak_bytes(lambda: gradients(function, leaves, grad_output), compiled_device)

    # On the CPU with one thread: 3.1 of 28.1 MB, and 10.1 of 71.6 MB with the backward pass.
    for measure in (forward, training):
        assert 0 < 5 * measure(ms_deform_attn) <= measure(ms_deform_attn_reference)
