# SPDX-License-Identifier: Apache-2.0
"""The federated loss against the whole one, loops, and Detectron2's choice of classes."""

import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import Tensor
from torch.nn import functional as F

from vastdet.detr.federated_loss import FederatedLoss
from vastdet.detr.losses import FocalLoss, SigmoidCrossEntropyLoss, VarifocalLoss

ONE = torch.tensor(1.0)


def federated(num_classes: int, weights: Tensor) -> FederatedLoss:
    return FederatedLoss(
        SigmoidCrossEntropyLoss(), num_classes=num_classes, class_weights=lambda: weights
    )


def example() -> tuple[Tensor, Tensor, Tensor]:
    """N = 2, B = 3, Q = 4, K = 9; classes 1, 4 and 7 are there."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 9, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([-1, 1, 4, 7])[torch.randint(4, (2, 3, 4), generator=generator)]
    return logits, labels, torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)


def test_with_all_classes_it_is_the_other_loss() -> None:
    logits, labels, ious = example()
    for loss in (FocalLoss(alpha=0.5), SigmoidCrossEntropyLoss(), VarifocalLoss()):
        whole = loss(logits, labels, ious, num_boxes=ONE)
        for number in (9, 100):
            partial = FederatedLoss(loss, num_classes=number, class_weights=lambda: torch.ones(9))
            assert torch.equal(partial(logits, labels, ious, num_boxes=ONE), whole)


def test_only_the_drawn_classes_are_summed_and_learn() -> None:
    logits, labels, ious = example()
    loss = federated(5, torch.ones(9))
    torch.manual_seed(3)
    classes = loss.draw(labels, 9).tolist()
    assert len(classes) == 5
    assert classes == sorted(classes)
    assert {1, 4, 7} <= set(classes)
    torch.manual_seed(3)
    ours = loss(logits, labels, ious, num_boxes=ONE)
    expected = torch.zeros(2, dtype=torch.float64)
    for n, b, q in torch.cartesian_prod(*map(torch.arange, (2, 3, 4))).tolist():
        for k in classes:
            target = torch.tensor(float(labels[n, b, q] == k), dtype=torch.float64)
            expected[n] += F.binary_cross_entropy_with_logits(logits[n, b, q, k], target)
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    assert gradient.abs().amax(dim=(0, 1, 2)).nonzero().flatten().tolist() == classes


def test_the_draw_follows_the_weights_as_detectron2s_does() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    labels = torch.tensor([[[2, -1]]])
    loss = federated(3, weights)
    torch.manual_seed(0)
    ours, theirs = torch.zeros(6), torch.zeros(7)
    for _ in range(4000):
        ours[loss.draw(labels, 6)] += 1
        # A method that uses nothing of its object.
        theirs[
            FastRCNNOutputLayers.get_fed_loss_classes(None, torch.tensor([2, 6]), 4, 6, weights)
        ] += 1
    assert ours[2] == theirs[2] == 4000
    assert ours[0] == theirs[0] == 0
    # Detectron2 counts the background, which has label 6 here, as one of the four.
    assert theirs[6] == 4000
    share = (ours / 4000 - theirs[:6] / 4000).abs().max()
    print(f"largest difference {share:.3f}")
    # Measured: 0.007; the standard error of the difference of two such shares is at most 0.0112.
    assert share < 0.05
    assert ours[1] < ours[3] < ours[4] < ours[5]


@pytest.mark.parametrize("number", [1, 3])
def test_the_classes_of_the_batch_are_never_left_out(number: int) -> None:
    labels = torch.tensor([[[1, 4, 7, 4]]])
    assert federated(number, torch.ones(9)).draw(labels, 9).tolist() == [1, 4, 7]


def test_without_boxes_it_draws_others() -> None:
    logits = torch.randn(1, 1, 4, 9, requires_grad=True)
    labels = torch.full((1, 1, 4), -1)
    loss = federated(5, torch.ones(9))
    total = loss(logits, labels, torch.zeros(1, 1, 4), num_boxes=ONE).sum()
    total.backward()
    assert total > 0
    assert (logits.grad.abs().sum(dim=(0, 1, 2)) > 0).sum() == 5
    empty = loss(logits[:, :, :0], labels[:, :, :0], torch.zeros(1, 1, 0), num_boxes=ONE)
    assert empty.tolist() == [0]


def test_weights_are_asked_for_once_and_checked() -> None:
    asked: list[int] = []

    def weights() -> Tensor:
        asked.append(1)
        return torch.ones(8)

    loss = FederatedLoss(FocalLoss(), num_classes=4, class_weights=weights)
    assert not asked
    loss.draw(torch.tensor([0]), 8)
    loss.draw(torch.tensor([0]), 8)
    assert len(asked) == 1
    with pytest.raises(ValueError, match="weights of 8 classes, but there are logits of 9"):
        loss.draw(torch.tensor([0]), 9)
