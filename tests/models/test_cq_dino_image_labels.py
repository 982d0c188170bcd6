# SPDX-License-Identifier: Apache-2.0
"""Image labels, what is above them, and the asymmetric loss."""

import math
from pathlib import Path

import pytest
import torch
from tests.models.cq_dino_reference import hierarchy_of, random_hierarchy, read

from vastdet.models.cq_dino import (
    AncestorMask,
    AsymmetricLoss,
    ReleasedAsymmetricLoss,
    image_labels,
    preset,
)
from vastdet.vocabulary import CategoryHierarchy


@pytest.mark.parametrize("case", ["v3det", "coco", "defaults"])
def test_equals_the_authors(shared_data: Path, case: str) -> None:
    reference = read(shared_data, "asl")[case]
    kwargs = reference["kwargs"]
    loss = AsymmetricLoss(
        gamma_negative=kwargs["gamma_neg"],
        gamma_positive=kwargs["gamma_pos"],
        clip=kwargs["clip"],
        eps=kwargs["eps"],
    )
    logits = reference["logits"].clone().requires_grad_()
    ours = loss(logits, reference["targets"].bool())
    # Measured: 6e-7 of the loss, 8.6e-7 in the gradient; logits of 120 and -120 among them.
    torch.testing.assert_close(ours, reference["loss"], rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(gradient, reference["grad"], rtol=0, atol=1e-6)


def test_a_grid_of_single_logits(shared_data: Path) -> None:
    grid = read(shared_data, "asl")["grid"]
    logits = grid["logits"][:, None]
    for name in ("neg", "pos"):
        present = torch.full_like(logits, name == "pos", dtype=torch.bool)
        ours = preset("official").loss().per_category(logits, present, None)[:, 0]
        torch.testing.assert_close(ours, grid[name], rtol=1e-6, atol=1e-6)


def test_by_loops_in_double() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 9, dtype=torch.float64, generator=generator)
    present = torch.rand(2, 9, generator=generator) < 0.3
    excluded = ~present & (torch.rand(2, 9, generator=generator) < 0.3)
    assert excluded.any()
    expected = 0.0
    for b in range(2):
        for k in range(9):
            p = 1 / (1 + math.exp(-logits[b, k]))
            if present[b, k]:
                expected -= (1 - p) ** 2 * math.log(p)
            elif not excluded[b, k]:
                p = max(p - 0.1, 0)
                expected -= p**3 * math.log(1 - p)
    loss = AsymmetricLoss(gamma_negative=3, gamma_positive=2, clip=0.1)
    ours = loss(logits, present, excluded)
    assert ours.item() == pytest.approx(expected, rel=1e-12)


def test_excluded_categories_have_no_gradient() -> None:
    logits = torch.randn(2, 6, requires_grad=True)
    present = torch.tensor([[True, False, False, False, False, False]] * 2)
    excluded = torch.tensor([[False, True, False, False, True, False]] * 2)
    gradients = []
    for loss in (AsymmetricLoss(), ReleasedAsymmetricLoss()):
        value = loss(logits, present, excluded)
        (gradient,) = torch.autograd.grad(value, logits)
        assert not gradient[excluded].any()
        assert gradient[present].all()
        gradients.append((value, gradient))
    (ours, our_gradient), (theirs, their_gradient) = gradients
    torch.testing.assert_close(our_gradient, their_gradient)
    # An excluded category is absent at probability one half there: 0.45^7 * -log 0.55 each.
    constant = -(0.45**7) * math.log(0.55)
    assert constant == pytest.approx(0.0022, abs=5e-5)
    assert (theirs - ours).item() == pytest.approx(4 * constant, abs=2e-6)


def test_no_labels_and_one_category() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    present = image_labels([torch.zeros(0, dtype=torch.int64)] * 2, 3)
    assert not present.any()
    loss = AsymmetricLoss(gamma_negative=1, clip=0)(logits, present)
    assert loss.item() == pytest.approx(6 * 0.5 * math.log(2))
    one = AsymmetricLoss()(torch.zeros(1, 1), image_labels([torch.tensor([0, 0])], 1))
    assert one.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gammas", [(7.0, 0.0), (4.0, 1.0), (0.0, 0.0)])
def test_half_precision(dtype: torch.dtype, gammas: tuple[float, float]) -> None:
    loss = AsymmetricLoss(gamma_negative=gammas[0], gamma_positive=gammas[1])
    extreme = torch.tensor([[6e4, -6e4, 90.0, -90.0, 20.0, -20.0, 12.0, -12.0, 0.0, 0.1]] * 2)
    logits = extreme.to(dtype).requires_grad_()
    present = torch.zeros(2, 10, dtype=torch.bool)
    present[1] = True
    value = loss(logits, present)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.detach().float(), present), rtol=0, atol=0)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_a_likely_absent_category_is_scored_to_the_last_digit() -> None:
    logits = torch.tensor([[12.0]])
    absent = torch.zeros(1, 1, dtype=torch.bool)
    loss = AsymmetricLoss(gamma_negative=0, clip=0)
    # One minus the sigmoid would be off by 4e-3 here.
    assert loss(logits, absent).item() == pytest.approx(12 + math.log1p(math.exp(-12)), abs=2e-6)


def test_wrong_parameters() -> None:
    for wrong in ({"gamma_negative": -1.0}, {"clip": 1.0}, {"eps": 0.0}):
        with pytest.raises(ValueError, match="exponents are 0 or more"):
            AsymmetricLoss(**wrong)


@pytest.mark.parametrize("all_categories", [True, False])
def test_ancestors_by_walks(all_categories: bool) -> None:
    graph = random_hierarchy(2, all_categories=all_categories)
    num = graph.num_categories
    generator = torch.Generator().manual_seed(0)
    classes = [torch.randint(num, (n,), generator=generator) for n in (5, 0, 3)]
    present = image_labels(classes, num)
    excluded = AncestorMask(graph)(present)
    for b, ids in enumerate(classes):
        labels = set(ids.tolist())
        nodes = {int(graph.category_nodes[k]) for k in labels} - {-1}
        above = {n for node in nodes for n in graph.ancestors(node).tolist()}
        expected = {k for k in range(num) if graph.category_nodes[k] in above} - labels
        assert set(present[b].nonzero().flatten().tolist()) == labels
        assert set(excluded[b].nonzero().flatten().tolist()) == expected
    assert excluded.any()


def test_ancestors_of_the_authors(shared_data: Path) -> None:
    rows = read(shared_data, "tree")["rows"]
    mask = AncestorMask(hierarchy_of(rows))
    excluded = mask(torch.eye(len(rows), dtype=torch.bool))
    for row, found in zip(rows, excluded, strict=True):
        assert found.nonzero().flatten().tolist() == sorted(row["ancestors"])


def test_no_hierarchy_to_speak_of() -> None:
    mask = AncestorMask(CategoryHierarchy.from_ids([], category_nodes=[None, None]))
    assert not mask(torch.ones(3, 2, dtype=torch.bool)).any()
    with pytest.raises(ValueError, match="labels of 3 categories, but the hierarchy has 2"):
        mask(torch.ones(3, 3, dtype=torch.bool))


@pytest.mark.parametrize("wrong", [5, -1])
def test_labels_out_of_range(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"boxes of category {wrong}, but the ids are 0..4"):
        image_labels([torch.tensor([1, wrong])], 5)
