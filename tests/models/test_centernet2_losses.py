# SPDX-License-Identifier: Apache-2.0
"""The losses of CenterNet2's first stage against loops, at the edges, and over processes."""

import math

import pytest
import torch
from torch import Tensor

from vastdet.models.centernet2 import losses as losses_module
from vastdet.models.centernet2.losses import CenterNetCriterion, heatmap_focal_loss
from vastdet.models.centernet2.targets import CenterTargets

B, R = 2, 60


@pytest.fixture
def predictions() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Some probabilities beyond 0.85, some beyond the clamp at 1e-4.
    logits = 6 * torch.randn(B, R, generator=generator)
    return logits, 4 * torch.rand(B, R, 4, generator=generator)


@pytest.fixture
def targets() -> CenterTargets:
    generator = torch.Generator().manual_seed(1)
    heatmaps = torch.rand(B, R, generator=generator) ** 4
    # Two boxes share a location; the images differ in the number of peaks.
    peaks = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([3, 17, 17, 40, 8])
    heatmaps[peaks] = 1
    return CenterTargets(
        heatmaps,
        peaks,
        torch.rand(B, R, generator=generator) < torch.tensor([[0.4], [0.1]]),
        4 * torch.rand(B, R, 4, generator=generator) + 0.1,
    )


def brute_force(predictions: tuple[Tensor, Tensor], targets: CenterTargets) -> dict[str, float]:
    """Term by term, with the authors' constants."""
    logits, distances = predictions
    pos = neg = loc = 0.0

    def probability(image: int, location: int) -> float:
        p = 1 / (1 + math.exp(-logits[image, location].item()))
        return min(max(p, 1e-4), 1 - 1e-4)

    for image, location in zip(*(x.tolist() for x in targets.peaks), strict=True):
        p = probability(image, location)
        pos -= 0.5 * 0.25 * (1 - p) ** 2 * math.log(p)
    num_regressed = 0
    for image in range(B):
        for location in range(R):
            p, y = probability(image, location), targets.heatmaps[image, location].item()
            if p < 0.85:
                neg -= 0.5 * 0.75 * (1 - y) ** 4 * p**2 * math.log(1 - p)
            if not targets.regressed[image, location]:
                continue
            num_regressed += 1
            a = distances[image, location].tolist()
            b = targets.gt_distances[image, location].tolist()
            inner = (min(a[0], b[0]) + min(a[2], b[2])) * (min(a[1], b[1]) + min(a[3], b[3]))
            hull = (max(a[0], b[0]) + max(a[2], b[2])) * (max(a[1], b[1]) + max(a[3], b[3]))
            union = (a[0] + a[2]) * (a[1] + a[3]) + (b[0] + b[2]) * (b[1] + b[3]) - inner
            loc += 1 - (inner + 1) / (union + 1) + (hull - union) / hull
    num_peaks = len(targets.peaks[0])
    return {
        "loss_centernet_pos": pos / num_peaks,
        "loss_centernet_neg": neg / num_peaks,
        "loss_centernet_loc": loc / num_regressed,
    }


def test_losses_equal_loops(predictions, targets) -> None:
    found = CenterNetCriterion()(*predictions, targets)
    expected = brute_force(predictions, targets)
    # Measured: 1e-7 of each.
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-5)
    assert min(expected.values()) > 0.01


def test_the_heatmap_loss_has_the_gradient_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(1, 12, generator=generator, dtype=torch.float64)
    heatmaps = torch.rand(1, 12, generator=generator, dtype=torch.float64)
    peaks = torch.tensor([0, 0]), torch.tensor([2, 7])
    # In float64, as gradcheck wants it; the function itself computes in float32.
    assert heatmap_focal_loss(logits.float(), heatmaps.float(), peaks)[0].dtype == torch.float32
    leaf = logits.float().requires_grad_()
    sum(heatmap_focal_loss(leaf, heatmaps.float(), peaks)).backward()
    eps = 1e-6

    def total(x: Tensor) -> float:
        p = x.sigmoid()
        at_peaks = p[peaks]
        pos = -((1 - at_peaks) ** 2 * at_peaks.log()).sum()
        return (pos - ((1 - heatmaps) ** 4 * p**2 * (1 - p).log()).sum()).item()

    for i in range(12):
        step = torch.zeros_like(logits)
        step[0, i] = eps
        slope = (total(logits + step) - total(logits - step)) / (2 * eps)
        assert leaf.grad[0, i].item() == pytest.approx(slope, abs=1e-5)


def test_high_probabilities_away_from_peaks_are_let_off() -> None:
    logits = torch.tensor([[math.log(0.86 / 0.14), math.log(0.84 / 0.16)]], requires_grad=True)
    peaks = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    pos, neg = heatmap_focal_loss(logits, torch.zeros(1, 2), peaks, ignore_high_fp=0.85)
    assert pos == 0
    assert neg.item() == pytest.approx(-(0.84**2) * math.log(0.16), rel=1e-5)
    neg.backward()
    assert logits.grad[0, 0] == 0 < logits.grad[0, 1]
    both = heatmap_focal_loss(logits, torch.zeros(1, 2), peaks)[1]
    assert both > neg - 0.86**2 * math.log(0.14) - 1e-5


def test_probabilities_beyond_the_clamp_have_a_finite_loss_and_no_gradient() -> None:
    logits = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    peaks = torch.tensor([0]), torch.tensor([0])
    pos, neg = heatmap_focal_loss(logits, torch.tensor([[1.0, 0.0]]), peaks)
    assert pos.item() == pytest.approx(-math.log(1e-4), rel=1e-3)
    assert neg.item() == pytest.approx(-math.log(1e-4), rel=1e-3)
    (pos + neg).backward()
    assert not logits.grad.any()


def test_no_boxes_give_finite_losses_with_a_graph(predictions) -> None:
    logits, distances = (p.requires_grad_() for p in predictions)
    nobody = torch.zeros(0, dtype=torch.long)
    targets = CenterTargets(
        torch.zeros(B, R),
        (nobody, nobody),
        torch.zeros(B, R, dtype=torch.bool),
        torch.zeros(B, R, 4),
    )
    losses = CenterNetCriterion()(logits, distances, targets)
    sum(losses.values()).backward()
    assert losses["loss_centernet_pos"] == losses["loss_centernet_loc"] == 0
    assert losses["loss_centernet_neg"] > 0
    assert logits.grad.isfinite().all()
    assert not distances.grad.any()


def test_weights_scale_their_terms(predictions, targets) -> None:
    plain = CenterNetCriterion()(*predictions, targets)
    heavy = CenterNetCriterion(pos_weight=1.0, neg_weight=1.5, reg_weight=2.0)(
        *predictions, targets
    )
    for name, factor in (("pos", 2), ("neg", 3), ("loc", 2)):
        key = f"loss_centernet_{name}"
        torch.testing.assert_close(heavy[key], factor * plain[key])


def test_processes_average_to_one_large_batch(
    predictions, targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion = CenterNetCriterion()
    whole = criterion(*predictions, targets)
    shards = []
    for b in range(B):
        of_image = targets.peaks[0] == b
        peaks = targets.peaks[0][of_image] - b, targets.peaks[1][of_image]
        rows = CenterTargets(
            targets.heatmaps[b : b + 1],
            peaks,
            targets.regressed[b : b + 1],
            targets.gt_distances[b : b + 1],
        )
        shards.append(([p[b : b + 1] for p in predictions], rows))
    totals: list[Tensor] = []
    monkeypatch.setattr(losses_module, "mean_over_ranks", lambda v: totals.append(v) or v)
    for shard, rows in shards:
        criterion(*shard, rows)
    assert (totals[0] != totals[1]).all(), "the shards must differ"
    mean = (totals[0] + totals[1]) / 2
    monkeypatch.setattr(losses_module, "mean_over_ranks", lambda v: mean)
    parts = [criterion(*shard, rows) for shard, rows in shards]
    for name, value in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, value)
