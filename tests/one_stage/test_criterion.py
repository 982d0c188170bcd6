# SPDX-License-Identifier: Apache-2.0
"""The losses of FCOS and ATSS against sums by loops and against torchvision's head."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.fcos import FCOSHead as TorchvisionHead

from vastdet.layers.distances import centerness
from vastdet.one_stage import criterion as criterion_module
from vastdet.one_stage.criterion import CenternessCriterion
from vastdet.one_stage.targets import LocationTargets

B, R, K = 2, 40, 3


@pytest.fixture
def predictions() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(B, R, K, generator=generator),
        4 * torch.rand(B, R, 4, generator=generator) + 0.1,
        torch.randn(B, R, generator=generator),
    )


@pytest.fixture
def targets() -> LocationTargets:
    generator = torch.Generator().manual_seed(1)
    gt_classes = torch.randint(0, K + 1, (B, R), generator=generator)
    gt_classes[0, :5] = K  # the images differ in the number of positives
    return LocationTargets(
        gt_classes,
        4 * torch.rand(B, R, 4, generator=generator) + 0.1,
    )


def chapter_losses(
    predictions: tuple[Tensor, Tensor, Tensor], targets: LocationTargets
) -> dict[str, float]:
    """Section 14.5.5, term by term, with N+ counted over the batch."""
    sums = {"loss_cls": 0.0, "loss_box_reg": 0.0, "loss_centerness": 0.0}
    num_positives = 0
    for b in range(B):
        for r in range(R):
            label = int(targets.gt_classes[b, r])
            for k in range(K):
                p = 1 / (1 + math.exp(-predictions[0][b, r, k]))
                p_t, alpha_t = (p, 0.25) if k == label else (1 - p, 0.75)
                sums["loss_cls"] -= alpha_t * (1 - p_t) ** 2 * math.log(p_t)
            if label == K:
                continue
            num_positives += 1
            pred, gt = predictions[1][b, r].tolist(), targets.gt_distances[b, r].tolist()
            weight = math.sqrt(
                min(gt[0], gt[2]) / max(gt[0], gt[2]) * min(gt[1], gt[3]) / max(gt[1], gt[3])
            )
            area_p = (pred[0] + pred[2]) * (pred[1] + pred[3])
            area_g = (gt[0] + gt[2]) * (gt[1] + gt[3])
            inner = (min(pred[0], gt[0]) + min(pred[2], gt[2])) * (
                min(pred[1], gt[1]) + min(pred[3], gt[3])
            )
            sums["loss_box_reg"] -= weight * math.log(inner / (area_p + area_g - inner))
            c = 1 / (1 + math.exp(-predictions[2][b, r]))
            sums["loss_centerness"] -= weight * math.log(c) + (1 - weight) * math.log(1 - c)
    return {name: value / num_positives for name, value in sums.items()}


def test_the_default_is_the_formula_of_the_chapter(predictions, targets) -> None:
    ours = CenternessCriterion(num_classes=K)(*predictions, targets)
    expected = chapter_losses(predictions, targets)
    assert {k: v.item() for k, v in ours.items()} == pytest.approx(expected, rel=1e-4)


def test_giou_without_weights_equals_torchvision(predictions, targets) -> None:
    logits, distances, centerness_logits = predictions
    criterion = CenternessCriterion(num_classes=K, loc_loss_type="giou", loc_loss_weighting="none")
    ours = criterion(*predictions, targets)
    anchors = torch.tensor([96.0, 96.0, 104.0, 104.0]).repeat(R, 1)
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    theirs = TorchvisionHead(32, 1, K, num_convs=1).compute_loss(
        # One box a location, so that matched index and location are the same.
        [
            {"boxes": 100 + 8 * signs * targets.gt_distances[b], "labels": targets.gt_classes[b]}
            for b in range(B)
        ],
        {
            "cls_logits": logits,
            "bbox_regression": distances,
            "bbox_ctrness": centerness_logits[..., None],
        },
        [anchors] * B,
        [torch.where(targets.gt_classes[b] < K, torch.arange(R), -1) for b in range(B)],
    )
    torch.testing.assert_close(ours["loss_cls"], theirs["classification"])
    torch.testing.assert_close(ours["loss_box_reg"], theirs["bbox_regression"])
    torch.testing.assert_close(ours["loss_centerness"], theirs["bbox_ctrness"])


def test_centerness_mean_divides_by_the_sum_of_weights(predictions, targets) -> None:
    plain = CenternessCriterion(num_classes=K)(*predictions, targets)["loss_box_reg"]
    criterion = CenternessCriterion(num_classes=K, loc_loss_weighting="centerness_mean")
    weights = centerness(targets.gt_distances[targets.gt_classes < K])
    torch.testing.assert_close(
        criterion(*predictions, targets)["loss_box_reg"], plain / weights.mean()
    )


def test_the_weight_of_the_box_loss_is_a_factor(predictions, targets) -> None:
    plain = CenternessCriterion(num_classes=K)(*predictions, targets)
    doubled = CenternessCriterion(num_classes=K, loc_loss_weight=2.0)(*predictions, targets)
    torch.testing.assert_close(doubled["loss_box_reg"], 2 * plain["loss_box_reg"])
    assert doubled["loss_cls"] == plain["loss_cls"]
    assert doubled["loss_centerness"] == plain["loss_centerness"]


@pytest.mark.parametrize("loc_loss_type", criterion_module.LOC_LOSSES)
@pytest.mark.parametrize("weighting", criterion_module.LOC_LOSS_WEIGHTINGS)
def test_no_positive_gives_finite_losses_with_a_graph(
    predictions, targets, loc_loss_type: str, weighting: str
) -> None:
    predictions = [p.requires_grad_() for p in predictions]
    criterion = CenternessCriterion(
        num_classes=K, loc_loss_type=loc_loss_type, loc_loss_weighting=weighting
    )
    background = targets._replace(gt_classes=torch.full((B, R), K))
    losses = criterion(*predictions, background)
    sum(losses.values()).backward()
    assert losses["loss_box_reg"] == 0
    assert losses["loss_centerness"] == 0
    assert all(p.grad.isfinite().all() for p in predictions)


@pytest.mark.parametrize("weighting", criterion_module.LOC_LOSS_WEIGHTINGS)
def test_processes_average_to_one_large_batch(
    predictions, targets, weighting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion = CenternessCriterion(num_classes=K, loc_loss_weighting=weighting)
    whole = criterion(*predictions, targets)
    shards = [
        ([p[b : b + 1] for p in predictions], [t[b : b + 1] for t in targets]) for b in (0, 1)
    ]
    totals = []
    monkeypatch.setattr(criterion_module, "mean_over_ranks", lambda v: totals.append(v) or v)
    for shard, shard_targets in shards:
        criterion(*shard, LocationTargets(*shard_targets))
    mean = (totals[0] + totals[1]) / 2
    assert totals[0][0] != totals[1][0], "the shards must differ"
    monkeypatch.setattr(criterion_module, "mean_over_ranks", lambda v: mean)
    parts = [criterion(*shard, LocationTargets(*t)) for shard, t in shards]
    for name, value in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, value)
