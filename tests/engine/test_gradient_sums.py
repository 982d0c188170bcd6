# SPDX-License-Identifier: Apache-2.0
"""Sums over positives and negatives, by hand, by loops, and on a small DINO."""

import itertools
import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from tests.models.architectures import ARCHITECTURES, NUM_CLASSES
from tests.models.test_architectures import build, sample, train_losses
from torch import Tensor
from torch.nn import functional as F

from vastdet.engine import gradient_sums
from vastdet.engine.gradient_sums import (
    DEFINITIONS,
    HARD_RULES,
    SUMS,
    StepGradients,
    above_probability,
    hard_negatives,
    top_share,
)
from vastdet.layers.observed_logits import (
    DENOISING,
    PARTS,
    PREDICTIONS,
    PROPOSALS,
    LogitSource,
    ObservedLogits,
    logits_from,
    observable,
    observed,
    observing,
)

HARD = hard_negatives("probability", 0.1)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def named(step: StepGradients, definition: str, part: str = PREDICTIONS) -> dict[str, float]:
    values = step.parts[PARTS.index(part), DEFINITIONS.index(definition)]
    return dict(zip(SUMS, values.tolist(), strict=True))


def test_by_hand() -> None:
    # Two queries of three classes: the first answers for class 2, the second for nothing.
    p = torch.tensor([[0.2, 0.05, 0.6], [0.1, 0.4, 0.01]], dtype=torch.float64)
    logits = (p / (1 - p)).log().float()[None].requires_grad_()
    labels = torch.tensor([[2, -1]])
    target = F.one_hot(torch.tensor([[2, 3]]), 4)[..., :3].float()
    step = StepGradients(3, hard_negatives("probability", 0.15))
    with observing(step.add):
        z = observed(logits, labels)
        loss = 2 * F.binary_cross_entropy_with_logits(z, target, reduction="sum")
    loss.backward()
    expected = {
        "positive": 0.4, "negative": 0.76, "hard": 0.6,
        "matched_negative": 0.25, "matched_hard": 0.2,
    }  # fmt: skip
    assert named(step, "cross_entropy") == pytest.approx(expected, rel=1e-6)
    # The gradient of cross-entropy is the probability less the label: here twice.
    assert named(step, "loss") == pytest.approx({k: 2 * v for k, v in expected.items()}, rel=1e-6)
    columns = torch.tensor([[0.0, 0.0, 0.4], [0.3, 0.45, 0.01], [0.2, 0.4, 0.0]])
    torch.testing.assert_close(step.categories[1], columns.double(), rtol=1e-6, atol=1e-8)
    assert step.num_positives.tolist() == [0, 0, 1]


def test_many_equal_negatives_dilute_as_equation_3_says() -> None:
    ratios = []
    for num_classes in (80, 13_204):
        shown = ObservedLogits(
            LogitSource(),
            torch.full((1, 1, num_classes), logit(0.01)),
            torch.zeros(1, 1, dtype=torch.int64),
            None,
            torch.zeros(1, 1, num_classes),
        )
        step = StepGradients(num_classes, HARD)
        step.add(shown)
        sums = named(step, "cross_entropy")
        ratios.append(sums["positive"] / sums["matched_negative"])
        assert ratios[-1] == pytest.approx(0.99 / ((num_classes - 1) * 0.01), rel=1e-5)
        assert sums["hard"] == 0
    assert ratios[0] / ratios[1] == pytest.approx(13_203 / 79, rel=1e-5)


def by_loops(
    shown: ObservedLogits, num_categories: int, rule: str, value: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every element by itself: (D, S), (D, 3, C), (C,)."""
    sums = np.zeros((2, 5))
    categories, count = np.zeros((2, 3, num_categories)), np.zeros(num_categories)
    *lead, num_logits = shown.logits.shape
    for place in itertools.product(*map(range, lead)):
        if shown.counted is not None and not shown.counted.expand(lead)[place]:
            continue
        label = int(shown.labels[place])
        ids = range(num_logits)
        if shown.source.categories is not None:
            ids = shown.source.categories[place[-2]].tolist()
        p = [1 / (1 + math.exp(-z)) for z in shown.logits[place].double().tolist()]
        negatives = [k for k in range(num_logits) if k != label and ids[k] >= 0]
        hard = {k for k in negatives if p[k] >= value}
        if rule == "top":
            best = sorted(negatives, key=lambda k: -p[k])
            hard = set(best[: max(1, round(value * num_logits))])
        for k in range(num_logits):
            g = abs(shown.gradient[(*place, k)].item()), abs(p[k] - (k == label))
            if ids[k] < 0:
                continue
            for d in range(2):
                if k == label:
                    sums[d, 0] += g[d]
                    categories[d, 0, ids[k]] += g[d]
                    continue
                for s, enters in enumerate([True, k in hard], start=1):
                    sums[d, s] += g[d] * enters
                    sums[d, s + 2] += g[d] * enters * (label >= 0)
                    categories[d, s, ids[k]] += g[d] * enters
            count[ids[k]] += k == label
    return sums, categories, count


def random_logits(seed: int, *, selected: bool, counted: bool) -> ObservedLogits:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 3, 5, 6, generator=generator)
    # The last logit of the second image is padding.
    categories = torch.stack([torch.randperm(9, generator=generator)[:6] for _ in range(3)])
    categories[1, -1] = -1
    return ObservedLogits(
        LogitSource(categories=categories if selected else None),
        logits,
        torch.randint(-1, 5, (2, 3, 5), generator=generator),
        torch.rand(3, 5, generator=generator) < 0.7 if counted else None,
        torch.randn(2, 3, 5, 6, generator=generator),
    )


@pytest.mark.parametrize("max_elements", [1, 13, 1 << 22])
@pytest.mark.parametrize(("rule", "value"), [("probability", 0.4), ("top", 0.34)])
@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_equals_loops(
    monkeypatch: pytest.MonkeyPatch,
    max_elements: int,
    rule: str,
    value: float,
    selected: bool,
    counted: bool,
) -> None:
    monkeypatch.setattr(gradient_sums, "MAX_ELEMENTS", max_elements)
    num_categories = 9 if selected else 6
    step = StepGradients(num_categories, hard_negatives(rule, value))
    expected = [np.zeros((2, 5)), np.zeros((2, 3, num_categories)), np.zeros(num_categories)]
    for seed in range(2):
        shown = random_logits(seed, selected=selected, counted=counted)
        step.add(shown)
        for total, more in zip(expected, by_loops(shown, num_categories, rule, value), strict=True):
            total += more
    parts, categories, num_positives = step.reduced()
    # Measured: 6e-8 at most.
    np.testing.assert_allclose(parts[0].numpy(), expected[0], rtol=1e-6)
    np.testing.assert_allclose(categories.numpy(), expected[1], rtol=1e-6, atol=1e-9)
    assert num_positives.tolist() == expected[2].tolist()
    assert not parts[1:].any()


def test_no_query_is_positive_or_counted() -> None:
    shown = random_logits(0, selected=False, counted=False)
    none = torch.zeros(3, 5, dtype=torch.bool)
    background = torch.full_like(shown.labels, -1)
    step = StepGradients(6, HARD)
    step.add(ObservedLogits(shown.source, shown.logits, background, none, shown.gradient))
    assert not step.is_empty
    assert not step.parts.any()
    step.add(ObservedLogits(shown.source, shown.logits, background, None, shown.gradient))
    sums = named(step, "cross_entropy")
    assert sums["positive"] == sums["matched_negative"] == 0
    assert sums["negative"] == pytest.approx(float(shown.logits.sigmoid().sum()), rel=1e-6)


def test_only_predictions_by_class_count_for_categories() -> None:
    step = StepGradients(6, HARD)
    shown = random_logits(0, selected=False, counted=False)
    for source in (LogitSource(DENOISING), LogitSource(class_agnostic=True)):
        step.add(ObservedLogits(source, shown.logits, shown.labels, shown.counted, shown.gradient))
    assert not step.categories.any()
    assert not step.num_positives.any()
    assert named(step, "loss", DENOISING) == named(step, "loss", PREDICTIONS)


def test_the_scale_of_mixed_precision_is_taken_out() -> None:
    shown = random_logits(0, selected=False, counted=False)
    plain, scaled = StepGradients(6, HARD), StepGradients(6, HARD, scale=4.0)
    plain.add(shown)
    scaled.add(ObservedLogits(shown.source, shown.logits, shown.labels, None, 4 * shown.gradient))
    torch.testing.assert_close(scaled.parts, plain.parts, rtol=1e-6, atol=0)


def test_hard_rules() -> None:
    negatives = torch.tensor([[0.5, 0.0, 0.1, 0.3], [0.0, 0.0, 0.0, 0.0]])
    assert above_probability(negatives, 0.3).int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]
    assert top_share(negatives, 0.5).int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]
    assert top_share(negatives, 0.01).int().tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(("rule", "value"), [("best", 0.1), *((rule, 1.0) for rule in HARD_RULES)])
def test_unknown_hard_negatives(rule: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"expected one of \['probability', 'top'\] and a number"):
        hard_negatives(rule, value)


def test_another_number_of_logits_than_categories() -> None:
    step = StepGradients(7, HARD)
    with pytest.raises(ValueError, match=r"has 7 categories, but a class loss .* has 6 logits"):
        step.add(random_logits(0, selected=False, counted=False))


def focal_gradient(logits: Tensor, present: Tensor) -> Tensor:
    """The derivative of the focal loss (alpha 0.25, gamma 2), worked out on paper."""
    z = logits.double()
    p = z.sigmoid()
    absent = 0.75 * p**2 * (2 * (1 - p) * F.softplus(z) + p)
    of_present = -0.25 * (1 - p) ** 2 * (2 * p * F.softplus(-z) + (1 - p))
    return torch.where(present, of_present, absent)


def test_a_step_of_dino_equals_loops_and_the_closed_form(cfg: CfgNode) -> None:
    model = build(next(a for a in ARCHITECTURES if a.name == "DINO"), cfg)
    step, shown = StepGradients(NUM_CLASSES, HARD), []
    torch.manual_seed(0)

    def watch(one: ObservedLogits) -> None:
        shown.append(one)
        step.add(one)

    with observing(watch), logits_from(PREDICTIONS):
        losses = train_losses(model, [sample(), sample(seed=1)])
        sum(losses.values()).backward()
    expected = np.zeros((len(PARTS), 2, 5))
    by_category = np.zeros((2, 3, NUM_CLASSES))
    for one in shown:
        sums, categories, _ = by_loops(one, NUM_CLASSES, "probability", 0.1)
        expected[PARTS.index(one.source.part)] += sums
        by_category += categories * (one.source.part == PREDICTIONS)
    # Measured: 9e-9, and 3e-7 to the closed form.
    np.testing.assert_allclose(step.parts.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(step.categories.numpy(), by_category, rtol=1e-6)
    (own,) = [one for one in shown if one.source.part == PREDICTIONS]
    present = F.one_hot(own.labels.clamp(min=0), NUM_CLASSES).bool() & (own.labels >= 0)[..., None]
    # Six boxes; the class loss has the weight 1.
    derivative = focal_gradient(own.logits, present) / 6
    torch.testing.assert_close(own.gradient.double(), derivative, rtol=1e-5, atol=1e-9)
    ratio = derivative[present].abs().sum() / derivative[~present].abs().sum()
    sums = named(step, "loss")
    assert sums["positive"] / sums["negative"] == pytest.approx(float(ratio), rel=1e-6)


@pytest.mark.parametrize(("name", "num_stages"), [("Faster R-CNN", 1), ("Cascade R-CNN", 3)])
def test_two_stage_heads_with_sigmoids_equal_the_closed_form(
    name: str, num_stages: int, cfg: CfgNode
) -> None:
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    model = build(next(a for a in ARCHITECTURES if a.name.startswith(name)), cfg)
    shown: list[ObservedLogits] = []
    with ExitStack() as watch:
        for module in model.modules():
            watch.enter_context(observable(module))
        watch.enter_context(observing(shown.append))
        losses = train_losses(model, [sample(), sample(seed=1)])
        sum(losses.values()).backward()
    assert len(shown) == num_stages
    for one in shown:
        _, num_proposals, num_classes = one.logits.shape
        assert num_classes == NUM_CLASSES
        assert (one.labels >= 0).any()
        assert (one.labels < 0).any()
        present = F.one_hot(one.labels + 1, NUM_CLASSES + 1)[..., 1:]
        derivative = (one.logits.sigmoid() - present) / num_proposals
        # Measured: 2e-9.
        torch.testing.assert_close(one.gradient, derivative, rtol=1e-5, atol=1e-7)
    # Nobody watches what comes after, and what was watched trains as before.
    again = train_losses(model, [sample(), sample(seed=1)])
    assert len(shown) == num_stages
    assert again.keys() == losses.keys()


def test_a_step_of_cq_dino_equals_loops(cfg: CfgNode) -> None:
    model = build(next(a for a in ARCHITECTURES if a.name.startswith("CQ-DINO")), cfg)
    step, shown = StepGradients(NUM_CLASSES, HARD), []

    def watch(one: ObservedLogits) -> None:
        shown.append(one)
        step.add(one)

    with observing(watch):
        sum(train_losses(model, [sample(), sample(seed=1)]).values()).backward()
    expected = np.zeros((len(PARTS), 2, 5))
    by_category = np.zeros((2, 3, NUM_CLASSES))
    for one in shown:
        assert one.source.categories is not None, "logits are those of the selected categories"
        assert one.source.categories.shape == (2, 2)
        sums, categories, _ = by_loops(one, NUM_CLASSES, "probability", 0.1)
        expected[PARTS.index(one.source.part)] += sums
        by_category += categories * (one.source.part == PREDICTIONS)
    assert {one.source.part for one in shown} >= {PREDICTIONS, PROPOSALS, DENOISING}
    np.testing.assert_allclose(step.parts.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(step.categories.numpy(), by_category, rtol=1e-6)
    assert by_category.any()
