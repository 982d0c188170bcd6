# SPDX-License-Identifier: Apache-2.0
"""The position relation beside loops over pairs and the features of all pairs at once."""

import math

import pytest
import torch
from tests.models.relation_detr_reference import bias_of
from torch import Tensor

from vastdet.models.relation_detr.relation import PositionRelation


@pytest.fixture
def relation() -> PositionRelation:
    torch.manual_seed(0)
    return PositionRelation(4)


def boxes(count: int, seed: int, smallest: float = 0.01) -> Tensor:
    """(2, count, 4), sizes even in their logs."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(2, count, 2, generator=generator)
    sizes = smallest ** torch.rand(2, count, 2, generator=generator)
    return torch.cat([centers, sizes], dim=-1)


def test_equals_loops(relation: PositionRelation) -> None:
    sources, targets = boxes(3, 0), boxes(5, 1)
    weight, bias = relation.projection.weight.double(), relation.projection.bias.double()
    ours = relation(sources, targets)
    assert ours.shape == (2, 4, 3, 5)
    gap = 0.0
    for b, h, i, j in torch.cartesian_prod(*(torch.arange(n) for n in ours.shape)).tolist():
        (x, y, w, k), (u, v, s, t) = sources[b, i].tolist(), targets[b, j].tolist()
        numbers = [
            math.log(abs(x - u) / (w + 1e-5) + 1),
            math.log(abs(y - v) / (k + 1e-5) + 1),
            math.log((w + 1e-5) / (s + 1e-5)),
            math.log((k + 1e-5) / (t + 1e-5)),
        ]
        total = bias[h].item()
        for n, number in enumerate(numbers):
            for f in range(8):
                angle = 100 * number / 10000 ** (2 * f / 16)
                total += weight[h, 16 * n + 2 * f].item() * math.sin(angle)
                total += weight[h, 16 * n + 2 * f + 1].item() * math.cos(angle)
        gap = max(gap, abs(ours[b, h, i, j].item() - max(total, 0.0)))
    print(f"largest difference to loops {gap:.1e}")
    # Measured: 2.3e-6, of values up to 1.
    assert gap < 1e-5


@pytest.mark.parametrize("smallest", [0.01, 1e-3, 1e-7])
def test_is_as_exact_as_the_features_of_all_pairs(
    relation: PositionRelation, smallest: float
) -> None:
    sources, targets = boxes(60, 0, smallest), boxes(50, 1, smallest)
    sources[:, :5] = targets[:, :5]  # equal boxes: no distance, ratio 1
    exact = bias_of(relation, sources.double(), targets.double())
    ours = (relation(sources, targets) - exact).abs().max()
    plain = (bias_of(relation, sources, targets) - exact).abs().max()
    print(f"smallest side {smallest}: ours {ours:.1e}, all pairs in float32 {plain:.1e}")
    # Measured: 7e-6, 9e-6, 1.9e-5; in float32 the features of all pairs give 7e-6, 1.1e-5, 1.8e-5.
    assert ours < 2 * plain + 1e-6


def test_gradient_of_the_layer_and_none_of_the_boxes(relation: PositionRelation) -> None:
    sources, targets = boxes(9, 0).requires_grad_(), boxes(9, 1).requires_grad_()
    weighting = torch.randn(2, 4, 9, 9)
    (relation(sources, targets) * weighting).sum().backward()
    assert sources.grad is None
    assert targets.grad is None
    gradients = [p.grad.clone() for p in relation.parameters()]
    relation.zero_grad()
    expected = bias_of(relation, sources.detach().double(), targets.detach().double())
    (expected * weighting).sum().backward()
    for gradient, parameter in zip(gradients, relation.parameters(), strict=True):
        print(f"gradient {(gradient - parameter.grad).abs().max():.1e}")
        # Measured: 5e-5 of up to 24 and 2e-6.
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-4)


def test_keeps_no_features_for_the_gradient(relation: PositionRelation) -> None:
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    sources, targets = boxes(100, 0), boxes(100, 1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        relation(sources, targets)
    pairs = 2 * 100 * 100
    # The result itself, 4 heads, for ReLU; the features would be 64 a pair.
    print(f"kept {sum(kept.values()) / pairs:.2f} numbers a pair")
    assert sum(kept.values()) < 6 * pairs


def test_inference_equals_training(relation: PositionRelation) -> None:
    sources, targets = boxes(9, 0), boxes(7, 1)
    with torch.no_grad():
        inference = relation(sources, targets)
    assert torch.equal(inference, relation(sources, targets))


def test_no_boxes(relation: PositionRelation) -> None:
    assert relation(boxes(0, 0), boxes(7, 1)).shape == (2, 4, 0, 7)
    relation(boxes(0, 0), boxes(0, 1)).sum().backward()


def test_bfloat16(relation: PositionRelation) -> None:
    sources, targets = boxes(9, 0), boxes(7, 1)
    expected = relation(sources, targets)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = relation(sources, targets)
    mixed.float().sum().backward()
    whole = relation.bfloat16()(sources.bfloat16(), targets.bfloat16())
    assert whole.dtype == torch.bfloat16
    assert whole.isfinite().all()
    print(f"bfloat16: {(mixed.float() - expected).abs().max():.1e}")
    torch.testing.assert_close(mixed.float(), expected, atol=0.05, rtol=0.05)
