# SPDX-License-Identifier: Apache-2.0
"""The counter against counts by hand and against torch's own counter of flops."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vastdet.engine.pass_counter import count_pass

FLOAT = 4


def test_living_bytes_by_hand() -> None:
    model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 50))
    pixels = torch.randn(10, 100)

    @torch.no_grad()
    def run() -> None:
        model(pixels)

    counts = count_pass(model, run)
    # The hidden layer before and after its ReLU: weights and inputs were there before.
    assert counts.peak == 2 * 10 * 200 * FLOAT
    assert counts.peaks["2", "aten.addmm.default"] == (10 * 200 + 10 * 50) * FLOAT
    assert counts.num_flops == 2 * 10 * (100 * 200 + 200 * 50)


def test_what_a_model_keeps_stays_counted() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[torch.Tensor] = []

        def forward(self) -> None:
            self.kept.append(torch.zeros(1000))
            torch.zeros(500)

    model = Keeps()
    for calls in (1, 2, 3):
        model.kept.clear()
        counts = count_pass(model, model, calls)
        assert counts.peak == (1000 * calls + 500) * FLOAT
        assert counts.bytes_moved == 1500 * FLOAT
        assert counts.num_flops == 0


def test_views_are_free_and_writing_is_not() -> None:
    values = torch.ones(100, 10)

    def run(change: bool) -> None:
        view = values.t()[:5].reshape(5, 100)
        if change:
            values.mul_(2)
        assert view.shape == (5, 100)

    assert count_pass(nn.Identity(), lambda: run(False)).bytes_moved == 0
    moved = count_pass(nn.Identity(), lambda: run(True))
    assert moved.bytes_moved == 2 * 1000 * FLOAT
    assert moved.peak == 0


def test_training_holds_what_the_backward_pass_reads() -> None:
    layers = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
    pixels = torch.randn(32, 64)
    peak = count_pass(layers, lambda: layers(pixels).sum().backward()).peak
    gradients = 8 * 64 * 64 * FLOAT
    results = 8 * 32 * 64 * FLOAT
    assert gradients < peak < gradients + results + 4 * 64 * 64 * FLOAT


@pytest.mark.parametrize("backward", [False, True])
def test_flops_equal_those_of_torch(backward: bool) -> None:
    conv, linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
    model = nn.ModuleList([conv, linear])
    pixels = torch.randn(2, 3, 9, 9)

    def run() -> None:
        found = linear(conv(pixels).flatten(2).transpose(1, 2))
        if backward:
            found.square().mean().backward()

    with FlopCounterMode(display=False) as counter:
        run()
    assert count_pass(model, run).num_flops == counter.get_total_flops() > 0


def test_attention_on_the_cpu_is_counted() -> None:
    queries, keys = torch.randn(1, 2, 7, 16), torch.randn(1, 2, 5, 16)

    @torch.no_grad()
    def run() -> None:
        F.scaled_dot_product_attention(queries, keys, keys)

    assert count_pass(nn.Identity(), run).num_flops == 2 * 2 * 2 * 7 * 5 * 16
    queries.requires_grad_()
    both = count_pass(
        nn.Identity(), lambda: F.scaled_dot_product_attention(queries, keys, keys).sum().backward()
    )
    # The backward pass computes the scores again.
    assert both.num_flops == 7 * 2 * 2 * 7 * 5 * 16
    assert both.peak > 0


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    model = nn.Linear(3, 3)

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        count_pass(model, fail)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
