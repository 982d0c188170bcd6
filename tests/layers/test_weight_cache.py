# SPDX-License-Identifier: Apache-2.0
"""A value made of weights is made again when they change, and only then."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vastdet.layers.weight_cache import WeightCache


class Counter:
    """Sums a module's weights and counts how often."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.cache: WeightCache[float] = WeightCache()
        self.calls = 0

    def __call__(self) -> float:
        return self.cache.get(self.module.parameters(), self.compute)

    def compute(self) -> float:
        self.calls += 1
        return sum(p.double().sum().item() for p in self.module.parameters())


def step(module: nn.Module) -> None:
    module(torch.ones(2, 3)).sum().backward()
    torch.optim.AdamW(module.parameters(), lr=0.1).step()


def load(module: nn.Module) -> None:
    module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()})


def assign(module: nn.Module) -> None:
    state = {k: v + 1 for k, v in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def replace(module: nn.Module) -> None:
    module.weight = nn.Parameter(torch.ones(4, 3))


def replace_data(module: nn.Module) -> None:
    module.bias.data = torch.ones(4)


def write(module: nn.Module) -> None:
    with torch.no_grad():
        module.weight[0, 0] = 7


def convert(module: nn.Module) -> None:
    module.double()


CHANGES = [step, load, assign, replace, replace_data, write, convert]


@pytest.mark.parametrize("change", CHANGES, ids=lambda x: x.__name__)
def test_each_change_is_seen(change: Callable[[nn.Module], None]) -> None:
    value = Counter(nn.Linear(3, 4))
    before = value()
    assert value() == before
    assert value.calls == 1
    change(value.module)
    now = value()
    assert value.calls == 2
    assert now == value.compute()
    assert change is convert or now != before
    value()
    assert value.calls == 3


def test_another_number_of_weights() -> None:
    cache: WeightCache[int] = WeightCache()
    weights = [torch.zeros(1), torch.zeros(1)]
    assert cache.get(weights, lambda: 1) == 1
    assert cache.get(weights[:1], lambda: 2) == 2
    assert cache.get(weights[:1], lambda: 3) == 2


def test_drop_is_for_what_autograd_does_not_see() -> None:
    value = Counter(nn.Linear(3, 4))
    before = value()
    value.module.weight.data.add_(1)
    assert value() == before
    value.cache.drop()
    assert value() == pytest.approx(before + 12)


def test_copies_start_empty() -> None:
    cache: WeightCache[int] = WeightCache()
    weight = torch.zeros(1)
    cache.get([weight], lambda: 1)
    assert copy.deepcopy(cache).get([weight], lambda: 2) == 2
    assert pickle.loads(pickle.dumps(cache)).get([weight], lambda: 3) == 3
    assert cache.get([weight], lambda: 4) == 1
