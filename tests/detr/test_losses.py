# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from vastdet.detr.losses import (
    FocalLoss,
    GIoUAwareLoss,
    SigmoidCrossEntropyLoss,
    VarifocalLoss,
)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 1.0)])
def test_equals_torchvision(alpha: float, gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 7, 11, generator=generator)
    logits.requires_grad_()
    labels = torch.randint(-1, 11, (2, 3, 7), generator=generator)
    present = torch.zeros_like(logits)
    present[labels >= 0, labels[labels >= 0]] = 1
    expected = sigmoid_focal_loss(logits, present, alpha, gamma).sum(dim=(1, 2, 3)) / 5
    loss = FocalLoss(alpha=alpha, gamma=gamma)
    ours = loss(logits, labels, torch.zeros(2, 3, 7), num_boxes=torch.tensor(5.0))
    # Measured: 2e-7 of the loss, 6e-8 in the gradient.
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    (theirs,) = torch.autograd.grad(expected.sum(), logits, retain_graph=True)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(gradient, theirs, rtol=1e-5, atol=1e-7)


def test_cross_entropy_equals_torchs_and_its_gradient_is_the_error() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 7, 11, generator=generator)
    logits.requires_grad_()
    labels = torch.randint(-1, 11, (2, 3, 7), generator=generator)
    present = torch.zeros_like(logits)
    present[labels >= 0, labels[labels >= 0]] = 1
    expected = F.binary_cross_entropy_with_logits(logits, present, reduction="none")
    loss = SigmoidCrossEntropyLoss()
    ours = loss(logits, labels, torch.zeros(2, 3, 7), num_boxes=torch.tensor(5.0))
    # Measured: 1e-7 of the loss, 3e-8 in the gradient.
    torch.testing.assert_close(ours, expected.sum(dim=(1, 2, 3)) / 5, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(gradient, (logits.sigmoid() - present) / 5, rtol=0, atol=1e-7)


def test_only_counted_queries_enter() -> None:
    logits = torch.randn(1, 1, 4, 3)
    labels = torch.tensor([[[0, -1, 2, -1]]])
    arguments = (torch.zeros(1, 1, 4),)
    counted = torch.tensor([[True, True, False, False]])
    one = torch.tensor(1.0)
    ours = FocalLoss()(logits, labels, *arguments, num_boxes=one, counted=counted)
    first = FocalLoss()(logits[:, :, :2], labels[:, :, :2], torch.zeros(1, 1, 2), num_boxes=one)
    torch.testing.assert_close(ours, first)


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[[[200.0, -200.0]]]], requires_grad=True)
    loss = FocalLoss()(
        logits, torch.tensor([[[1]]]), torch.zeros(1, 1, 1), num_boxes=torch.tensor(1.0)
    )
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_no_classes_matched() -> None:
    logits = torch.zeros(1, 2, 3, 4)
    labels = torch.full((1, 2, 3), -1)
    loss = FocalLoss()(logits, labels, torch.zeros(1, 2, 3), num_boxes=torch.tensor(1.0))
    # 24 logits at probability a half: 0.75 * 0.25 * log 2 each.
    torch.testing.assert_close(loss, torch.tensor([24 * 0.75 * 0.25 * 0.693147]))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.75, 2.0), (0.4, 1.0)])
def test_varifocal_equals_weighted_cross_entropy(alpha: float, gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 7, 11, generator=generator)
    logits.requires_grad_()
    labels = torch.randint(-1, 11, (2, 3, 7), generator=generator)
    ious = torch.rand(2, 3, 7, generator=generator)
    target, present = torch.zeros(2, 3, 7, 11), torch.zeros(2, 3, 7, 11)
    present[labels >= 0, labels[labels >= 0]] = 1
    target[labels >= 0, labels[labels >= 0]] = ious[labels >= 0]
    weight = alpha * logits.detach().sigmoid() ** gamma * (1 - present) + target
    expected = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none")
    expected = expected.sum(dim=(1, 2, 3)) / 5
    loss = VarifocalLoss(alpha=alpha, gamma=gamma)
    ours = loss(logits, labels, ious, num_boxes=torch.tensor(5.0))
    # Measured: 1.2e-7 of the loss, 3e-8 in the gradient.
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    (theirs,) = torch.autograd.grad(expected.sum(), logits, retain_graph=True)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(gradient, theirs, rtol=1e-5, atol=1e-7)


def test_varifocal_is_least_where_the_score_is_the_iou() -> None:
    scores = torch.linspace(0.05, 0.95, 19)
    loss = VarifocalLoss().per_query(
        scores.logit()[:, None], torch.zeros(19, dtype=torch.int64), torch.full((19,), 0.7)
    )
    assert scores[loss.argmin()] == pytest.approx(0.7)
    # A matched box without overlap says nothing of its class: no loss at any score.
    none = VarifocalLoss().per_query(
        scores.logit()[:, None], torch.zeros(19, dtype=torch.int64), torch.zeros(19)
    )
    torch.testing.assert_close(none, torch.zeros(19), rtol=0, atol=1e-6)


def test_varifocal_large_logits_stay_finite() -> None:
    logits = torch.tensor([[[[200.0, -200.0]]]], requires_grad=True)
    loss = VarifocalLoss()(
        logits, torch.tensor([[[1]]]), torch.full((1, 1, 1), 0.5), num_boxes=torch.tensor(1.0)
    )
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_giou_aware_loss_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 1, 5, 4, generator=generator)
    logits.requires_grad_()
    labels = torch.tensor([[[0, -1, 3, 2, -1]], [[-1, -1, 1, 1, 0]]])
    iou = torch.rand(2, 1, 5, generator=generator)
    giou = torch.rand(2, 1, 5, generator=generator) * 2 - 1
    made = GIoUAwareLoss(alpha=0.3, gamma=1.5)
    targets = made.quality(iou, giou)
    ours = made(logits, labels, targets, num_boxes=torch.tensor(3.0))
    expected = []
    for layer in range(2):
        total = torch.zeros(())
        for query in range(5):
            for k in range(4):
                z = logits[layer, 0, query, k]
                p = z.sigmoid()
                if k == labels[layer, 0, query]:
                    t = (giou[layer, 0, query] + 1) / 2
                    entropy = -t * p.log() - (1 - t) * (1 - p).log()
                    total = total + 0.3 * (t - p).abs() ** 1.5 * entropy
                else:
                    total = total - 0.7 * p**1.5 * (1 - p).log()
        expected.append(total / 3)
    # Measured: 4.4e-7 of the loss, 6e-8 in the gradient.
    torch.testing.assert_close(ours, torch.stack(expected), rtol=2e-6, atol=0)
    (theirs,) = torch.autograd.grad(sum(expected), logits, retain_graph=True)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(gradient, theirs, rtol=1e-5, atol=1e-6)


def test_giou_aware_loss_is_zero_where_the_score_is_the_target() -> None:
    targets = torch.tensor([0.1, 0.5, 0.9])
    logits = torch.logit(targets)[None, None, :, None]
    labels = torch.zeros(1, 1, 3, dtype=torch.int64)
    one = torch.tensor(1.0)
    loss = GIoUAwareLoss()(logits, labels, targets[None, None], num_boxes=one)
    torch.testing.assert_close(loss, torch.zeros(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("logit", [300.0, -300.0])
@pytest.mark.parametrize("target", [0.0, 0.7, 1.0])
def test_giou_aware_loss_stays_finite(logit: float, target: float) -> None:
    logits = torch.full((1, 1, 2, 3), logit, requires_grad=True)
    labels = torch.tensor([[[1, -1]]])
    targets = torch.full((1, 1, 2), target)
    loss = GIoUAwareLoss()(logits, labels, targets, num_boxes=torch.tensor(1.0))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_other_losses_take_the_iou() -> None:
    iou, giou = torch.tensor([0.25]), torch.tensor([-0.5])
    assert FocalLoss().quality(iou, giou) is iou
    assert GIoUAwareLoss().quality(iou, giou) == 0.25
