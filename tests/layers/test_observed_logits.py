# SPDX-License-Identifier: Apache-2.0
"""The tap on class logits: what is shown, when nothing is, and that nothing changes."""

import pytest
import torch
from torch import Tensor, nn

from vastdet.layers.observed_logits import (
    DENOISING,
    ONE_TO_MANY,
    PREDICTIONS,
    LogitSource,
    ObservedLogits,
    logits_from,
    observable,
    observed,
    observing,
)


def a_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Uses the logits twice, so that its gradient is a sum."""
    logits = observed(logits, labels)
    return logits.sigmoid().sum() + (logits**2).sum()


def test_without_an_observer_the_logits_are_themselves() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    assert observed(logits, torch.zeros(2, dtype=torch.int64)) is logits


def test_logits_without_gradient_are_themselves() -> None:
    logits = torch.zeros(2, 3)
    with observing(lambda shown: pytest.fail("nothing to show")):
        assert observed(logits, torch.zeros(2, dtype=torch.int64)) is logits


def test_shows_the_whole_gradient_and_changes_none() -> None:
    shown: list[ObservedLogits] = []
    labels = torch.tensor([1, -1])
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (expected,) = torch.autograd.grad(a_loss(logits, labels), logits)
    with observing(shown.append):
        loss = 3 * a_loss(logits, labels)
    assert not shown
    # The backward pass may run after the observer was taken away.
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, 3 * expected, rtol=1e-6, atol=0)
    (one,) = shown
    assert one.gradient.equal(gradient)
    assert one.logits.equal(logits)
    assert not one.logits.requires_grad
    assert one.labels is labels
    assert one.source == LogitSource(PREDICTIONS)


def test_a_loss_that_nobody_uses_is_not_shown() -> None:
    shown: list[ObservedLogits] = []
    logits = torch.zeros(2, 3, requires_grad=True)
    labels = torch.tensor([0, 2])
    with observing(shown.append):
        a_loss(logits[:1], labels[:1])
        a_loss(logits, labels).backward()
    assert [one.logits.shape for one in shown] == [(2, 3)]


def test_sources_nest_and_end() -> None:
    shown: list[ObservedLogits] = []
    logits = torch.zeros(1, 2, requires_grad=True)
    labels, categories = torch.tensor([0]), torch.tensor([[7, 9]])
    with observing(shown.append):
        with logits_from(ONE_TO_MANY, categories=categories):
            a_loss(logits, labels).backward()
            with logits_from(DENOISING, class_agnostic=True):
                a_loss(logits, labels).backward()
        a_loss(logits, labels).backward()
    assert [one.source.part for one in shown] == [ONE_TO_MANY, DENOISING, PREDICTIONS]
    assert [one.source.class_agnostic for one in shown] == [False, True, False]
    assert [one.source.categories for one in shown] == [categories, categories, None]
    a_loss(logits, labels).backward()
    assert len(shown) == 3


def test_other_modules_are_left_alone() -> None:
    module = nn.Linear(1, 1)
    before = dict(vars(module))
    with observable(module):
        assert vars(module) == before
