# SPDX-License-Identifier: Apache-2.0
"""The average of weights against its closed form."""

import math

import pytest
import torch
from torch import nn

from vastdet.engine.ema import WeightAverage


@pytest.mark.parametrize("warmup", [0, 5])
def test_closed_form(warmup: float) -> None:
    model = nn.BatchNorm1d(3).double()
    average = WeightAverage(model, decay=0.9, warmup=warmup)
    history = [{k: v.clone() for k, v in model.state_dict().items()}]
    for step in range(1, 8):
        with torch.no_grad():
            model.weight.normal_()
            model.running_mean.normal_()
            model.num_batches_tracked.fill_(step)
        history.append({k: v.clone() for k, v in model.state_dict().items()})
        average.update()
    decays = [0.9 * (1 - math.exp(-t / warmup)) if warmup else 0.9 for t in range(1, 8)]
    for name in ("weight", "bias", "running_mean"):
        # The weight of value t is (1 - d_t) times all later decays.
        expected = history[0][name] * math.prod(decays)
        for t, decay in enumerate(decays, start=1):
            expected = expected + history[t][name] * (1 - decay) * math.prod(decays[t:])
        torch.testing.assert_close(average.weights[name], expected)
    assert average.weights["num_batches_tracked"] == 7


def test_applied_and_restored() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, decay=0.5, warmup=0)
    with torch.no_grad():
        model.weight.add_(1.0)
    own = model.weight.detach().clone()
    average.update()

    def evaluate() -> None:
        with average.applied():
            assert torch.equal(model.weight, average.weights["weight"])
            assert not torch.equal(model.weight, own)
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        evaluate()
    assert torch.equal(model.weight, own)


def test_state_round_trip() -> None:
    average = WeightAverage(nn.Linear(2, 2), decay=0.5, warmup=3)
    average.update()
    other = WeightAverage(nn.Linear(2, 2), decay=0.5, warmup=3)
    other.load_state_dict(average.state_dict())
    assert other.current_decay() == average.current_decay()
    assert torch.equal(other.weights["weight"], average.weights["weight"])


@pytest.mark.parametrize(("decay", "warmup"), [(1.0, 0), (-0.1, 0), (0.9, -1)])
def test_settings_out_of_range(decay: float, warmup: float) -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.EMA"):
        WeightAverage(nn.Linear(1, 1), decay=decay, warmup=warmup)
