# SPDX-License-Identifier: Apache-2.0
"""The category tree against the authors' outputs, recursion, and finite differences."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.cq_dino_reference import hierarchy_of, random_hierarchy, read
from torch import Tensor

from vastdet.models.cq_dino import (
    AdaptiveWeight,
    CategoryTree,
    DescendantWeight,
    FixedWeight,
    ReleasedCategoryTree,
    preset,
)
from vastdet.models.cq_dino.tree import ParentWeight
from vastdet.vocabulary import CategoryHierarchy

WEIGHTS = [AdaptiveWeight(), AdaptiveWeight(0.5), FixedWeight(), DescendantWeight()]


def children_of(graph: CategoryHierarchy, category: int) -> list[int]:
    """The categories below, past nodes that are none, each once; from the graph's own edges."""
    found: set[int] = set()
    waiting = [int(graph.category_nodes[category])]
    while waiting:
        for node in graph.children(waiting.pop()).tolist():
            below = graph.categories_at(node).tolist()
            found.update(below)
            waiting += [] if below else [node]
    return sorted(found)


def by_recursion(graph: CategoryHierarchy, queries: Tensor, weight: ParentWeight) -> Tensor:
    """Eq. 6 as it stands, for queries (K, D)."""
    shares = weight(graph.contracted())
    known: dict[int, Tensor] = {}

    def mixed(category: int) -> Tensor:
        if category not in known:
            outside = graph.category_nodes[category] < 0
            children = [] if outside else children_of(graph, category)
            known[category] = queries[category]
            if children:
                mean = sum(mixed(child) for child in children) / len(children)
                share = float(shares[category])
                known[category] = (1 - share) * queries[category] + share * mean
        return known[category]

    return torch.stack([mixed(k) for k in range(graph.num_categories)])


def test_equals_the_authors(shared_data: Path) -> None:
    reference = read(shared_data, "tree")
    graph = hierarchy_of(reference["rows"])
    weights = DescendantWeight()(graph.contracted())
    np.testing.assert_allclose(weights, reference["weights"].numpy(), rtol=0, atol=1e-12)
    tree = preset("official").tree(graph)
    queries = reference["x"].clone().requires_grad_()
    mixed = tree(queries)
    # Measured: 2.4e-7 in the queries and in their gradient.
    torch.testing.assert_close(mixed, reference["y_per_image"], rtol=0, atol=1e-6)
    # Their code changes the first image of a batch alone.
    torch.testing.assert_close(mixed[0], reference["y"][0], rtol=0, atol=1e-6)
    assert not torch.allclose(mixed[1], reference["y"][1], atol=0.1)
    (gradient,) = torch.autograd.grad((mixed * reference["probe"]).sum(), queries)
    torch.testing.assert_close(gradient, reference["x_grad_per_image"], rtol=0, atol=1e-6)
    # Their order matters: parents of the levels 7 and 8 are mixed at once.
    by_depth = CategoryTree(graph, weight=DescendantWeight())(queries)
    assert (by_depth - mixed).abs().max() > 0.05


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("all_categories", [True, False])
def test_random_dags_by_recursion(weight: ParentWeight, seed: int, all_categories: bool) -> None:
    graph = random_hierarchy(seed, all_categories=all_categories)
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(graph.num_categories, 5, dtype=torch.float64, generator=generator)
    tree = CategoryTree(graph, weight=weight)
    expected = by_recursion(graph, queries, weight)
    # Shares are kept in float32. Measured: 1.3e-7.
    torch.testing.assert_close(tree(queries), expected, rtol=0, atol=5e-7)
    assert not torch.allclose(expected, queries)


def test_random_dags_have_short_cuts_and_several_parents() -> None:
    graph = random_hierarchy(0).contracted()
    assert np.bincount(graph.edges[:, 1]).max() > 1
    assert len(graph.transitive_reduction().edges) < len(graph.edges)
    assert graph.num_levels > 3


def test_adaptive_weight_is_equation_7() -> None:
    edges = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "d")]
    graph = CategoryHierarchy.from_ids(edges, category_nodes=list("abcd"))
    weights = AdaptiveWeight()(graph)
    assert weights[0] == pytest.approx(0.6)
    assert weights[1] == pytest.approx(0.3 * (1 + math.log(2) / math.log(4)))


def test_descendant_weight_of_a_chain() -> None:
    graph = CategoryHierarchy.from_ids([("a", "b"), ("b", "c")], category_nodes=list("abc"))
    weights = DescendantWeight(bound=20)(graph)
    expected = [0.4 + 0.4 * math.log(2 + n) / math.log(22) for n in (2, 1, 0)]
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [CategoryTree, ReleasedCategoryTree])
def test_gradients(kind: type[CategoryTree]) -> None:
    # A chain of eleven with a second child everywhere, so that the released order joins levels.
    edges = [(str(k), str(k + 1)) for k in range(10)] + [(str(k), "x") for k in range(10)]
    names = [str(k) for k in range(11)] + ["x", None]
    tree = kind(CategoryHierarchy.from_ids(edges, category_nodes=names), weight=FixedWeight(0.4))
    queries = torch.randn(2, 13, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tree, queries)
    assert torch.autograd.gradgradcheck(tree, queries)


def test_batch_equals_single_and_the_input_stays() -> None:
    tree = CategoryTree(random_hierarchy(1))
    shared = torch.randn(40, 6)
    kept = shared.clone()
    # Views that repeat memory must not be written to.
    batch = tree(shared.expand(3, -1, -1))
    assert torch.equal(shared, kept)
    torch.testing.assert_close(batch, tree(shared).expand(3, -1, -1), rtol=0, atol=0)
    with_grad = shared.clone().requires_grad_()
    torch.testing.assert_close(tree(with_grad), batch[0], rtol=0, atol=0)
    tree(with_grad.expand(3, -1, -1)).sum().backward()
    assert torch.equal(with_grad, kept)
    once = shared.clone().requires_grad_()
    tree(once).sum().backward()
    torch.testing.assert_close(with_grad.grad, 3 * once.grad)


@pytest.mark.parametrize("nodes", [[None, None, None], ["a", "b", "c"]])
def test_a_hierarchy_without_edges_changes_nothing(nodes: list[str | None]) -> None:
    graph = CategoryHierarchy.from_ids([], category_nodes=nodes)
    for weight in WEIGHTS:
        tree = CategoryTree(graph, weight=weight)
        queries = torch.randn(2, 3, 4, requires_grad=True)
        assert torch.equal(tree(queries), queries)
    assert torch.equal(ReleasedCategoryTree(graph)(queries), queries)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_many_children(dtype: torch.dtype) -> None:
    # 5000 children of about 30: their sum is beyond float16 and far below bfloat16's digits.
    edges = [("top", str(k)) for k in range(5000)]
    graph = CategoryHierarchy.from_ids(
        edges, category_nodes=["top", *(str(k) for k in range(5000))]
    )
    queries = (30 + torch.randn(5001, 2)).to(dtype)
    tree = CategoryTree(graph, weight=FixedWeight(0.5))
    mixed = tree(queries)
    assert mixed.dtype == dtype
    expected = tree(queries.double())
    # Half a step of bfloat16 at 30 is 0.0625.
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=0.0626)


def test_no_state_and_moves_with_the_module() -> None:
    tree = CategoryTree(random_hierarchy(1))
    assert not list(tree.parameters())
    assert not tree.state_dict()
    assert tree.to("meta")(torch.zeros(40, 3, device="meta")).shape == (40, 3)


def test_wrong_number_of_queries() -> None:
    tree = CategoryTree(random_hierarchy(1))
    with pytest.raises(ValueError, match=r"of 40 categories, got queries of shape \(39, 3\)"):
        tree(torch.zeros(39, 3))


def test_shares_beyond_one() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1.5 to 1.5"):
        CategoryTree(random_hierarchy(1), weight=FixedWeight(1.5))
    with pytest.raises(ValueError, match=r"w of Eq. 7 is 0.6"):
        AdaptiveWeight(0.6)


def test_unknown_preset() -> None:
    assert type(preset("paper").tree(random_hierarchy(1))) is CategoryTree
    with pytest.raises(
        ValueError, match="no preset 'authors' of CQ-DINO; there are paper, official"
    ):
        preset("authors")
