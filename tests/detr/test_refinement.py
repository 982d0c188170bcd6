# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from vastdet.detr.refinement import (
    FixedReferences,
    IterativeRefinement,
    LookForwardTwice,
    References,
    Refinement,
)

EPS = 1e-5


def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4)


def references(size: int = 4) -> References:
    boxes = torch.rand(1, 3, size) * 0.5 + 0.2
    with_gradient = boxes.clone().requires_grad_()
    return References(boxes, with_gradient)


@pytest.mark.parametrize("kind", [FixedReferences, IterativeRefinement, LookForwardTwice])
def test_no_delta_leaves_the_boxes(kind: type[Refinement]) -> None:
    zero = nn.Linear(6, 4)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
    start = references()
    content = torch.randn(1, 3, 6)
    boxes, following = kind(EPS).step(zero, content, content, start, is_last=False)
    torch.testing.assert_close(boxes, start.detached)
    torch.testing.assert_close(following.detached, start.detached)


def test_points_become_boxes() -> None:
    content = torch.randn(1, 3, 6)
    boxes, _ = FixedReferences(EPS).step(head(), content, content, references(2), is_last=True)
    assert boxes.shape == (1, 3, 4)


def test_fixed_references_stay() -> None:
    start = references()
    content = torch.randn(1, 3, 6)
    _, following = FixedReferences(EPS).step(head(), content, content, start, is_last=False)
    assert following is start


def test_iterative_refinement_stops_the_gradient() -> None:
    content = torch.randn(1, 3, 6, requires_grad=True)
    boxes, following = IterativeRefinement(EPS).step(
        head(), content, content, references(), is_last=False
    )
    assert boxes.requires_grad
    assert not following.with_gradient.requires_grad
    assert torch.equal(following.detached, boxes.detach())


def test_look_forward_twice_lets_the_gradient_through() -> None:
    content = torch.randn(1, 3, 6, requires_grad=True)
    normed = torch.randn(1, 3, 6)
    refine = LookForwardTwice(EPS)
    _, second = refine.step(head(), content, normed, references(), is_last=False)
    assert not second.detached.requires_grad
    boxes, _ = refine.step(head(), torch.randn(1, 3, 6), normed, second, is_last=True)
    boxes.sum().backward()
    assert content.grad.any(), "the loss of a layer must reach the layer before"


def test_look_forward_twice_moves_references_by_the_output_before_the_norm() -> None:
    content, normed, start = torch.randn(1, 3, 6), torch.randn(1, 3, 6), references()
    refine = LookForwardTwice(EPS)
    boxes, following = refine.step(head(), content, normed, start, is_last=False)
    torch.testing.assert_close(following.detached, refine.moved(head()(content), start.detached))
    torch.testing.assert_close(boxes, refine.moved(head()(normed), start.detached))


def test_look_forward_twice_asks_the_head_once_where_there_is_no_norm() -> None:
    calls = []
    box_head = head()
    box_head.register_forward_hook(lambda *_: calls.append(1))
    content, start = torch.randn(1, 3, 6), references()
    refine = LookForwardTwice(EPS)
    boxes, following = refine.step(box_head, content, content, start, is_last=False)
    assert len(calls) == 1
    expected = refine.moved(head()(content), start.detached)
    torch.testing.assert_close(following.with_gradient, expected)
    torch.testing.assert_close(boxes, expected)


def test_predictions_may_have_a_bound_of_their_own() -> None:
    start = torch.tensor([[[1e-4, 0.5, 0.2, 0.2]]])
    content, normed = torch.randn(2, 1, 1, 6)
    refine, plain = LookForwardTwice(1e-3, prediction_eps=1e-5), LookForwardTwice(1e-3)
    boxes, following = refine.step(head(), content, normed, References(start, start), is_last=False)
    logits = torch.tensor([1e-4, 0.5, 0.2, 0.2]).logit()
    torch.testing.assert_close(boxes, (head()(normed) + logits).sigmoid())
    logits[0] = torch.tensor(1e-3).logit()
    torch.testing.assert_close(following.detached, (head()(content) + logits).sigmoid())
    assert plain.prediction_eps == 1e-3
