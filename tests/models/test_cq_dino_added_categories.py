# SPDX-License-Identifier: Apache-2.0
"""Categories that are appended to a trained CQ-DINO: the old ones stay what they were."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tests.models.architectures import cq_dino
from tests.models.test_architectures import sample
from torch import Tensor

from vastdet.models.cq_dino.added_categories import (
    ROWS,
    QueryMap,
    add_rows,
    appended_space,
    change_of_old_queries,
)
from vastdet.vocabulary import CategoryHierarchy, CategorySpace

DIM = 48


def space_of(first: int, count: int, edges: list[tuple[int, int]] | None = None) -> CategorySpace:
    ids = range(first, first + count)
    hierarchy = None
    if edges is not None:
        pairs = [(str(a), str(b)) for a, b in edges]
        hierarchy = CategoryHierarchy.from_ids(pairs, category_nodes=[str(i) for i in ids])
    return CategorySpace(tuple(f"c{i}" for i in ids), tuple(ids), hierarchy=hierarchy)


OLD = space_of(1, 5, [(1, 2), (1, 3)])
NEW = space_of(6, 2)


def model_of(cfg: CfgNode, space: CategorySpace, correlation: str, num_selected: int) -> Any:
    cfg = cfg.clone()
    cq_dino(cfg, correlation)
    node = cfg.MODEL.CQ_DINO
    num_edges = 0 if space.hierarchy is None else len(space.hierarchy.edges)
    node.VOCABULARY = f"vastdet_added_{len(space)}_{num_edges}"
    MetadataCatalog.get(node.VOCABULARY).category_space = space
    node.NUM_CLASSES, node.SELECTION.NUM_SELECTED = len(space), num_selected
    torch.manual_seed(0)
    return build_model(cfg).eval(), node


def grown(
    cfg: CfgNode, correlation: str, *, num_selected: int, given: CategorySpace = NEW
) -> tuple[Any, Any, float]:
    """A model, the same with appended categories, and how far old queries moved."""
    old, node = model_of(cfg, OLD, correlation, num_selected)
    with torch.no_grad():
        old.categories.selection.score.weight.mul_(20)
    space = appended_space(OLD, given)
    embeddings = torch.randn(len(space), DIM, generator=torch.Generator().manual_seed(3))
    weights, _ = add_rows(old.state_dict(), embeddings, len(OLD))
    new, _ = model_of(cfg, space, correlation, num_selected)
    new.load_state_dict(weights)
    return old, new, change_of_old_queries(node, weights, OLD, space)


def scores_of_all(model: Any, record: dict[str, Any]) -> Tensor:
    """The selection's scores (C,) of every category."""
    with torch.enable_grad():
        found = model.predict_padded([model.normalize(record["image"])])
    return found.selected.all_logits[0].detach()


@pytest.mark.parametrize("correlation", ["tree", "none"])
def test_old_scores_do_not_change(cfg: CfgNode, correlation: str) -> None:
    old, new, change = grown(cfg, correlation, num_selected=2)
    assert change == 0
    for seed in range(3):
        record = sample(seed=seed)
        before, after = scores_of_all(old, record), scores_of_all(new, record)
        assert (len(before), len(after)) == (5, 7)
        assert (after[:5] - before).abs().max() < 1e-5


@pytest.mark.parametrize("correlation", ["tree", "none"])
def test_old_detections_do_not_change_while_no_new_category_is_selected(
    cfg: CfgNode, correlation: str
) -> None:
    old, new, _ = grown(cfg, correlation, num_selected=2)
    # As unlikely as the least likely of the categories without children.
    copy_row(new, leaf_by_score(old, best=False))
    expected, found = detections(old), detections(new)
    assert found["selected_categories"].max() < len(OLD)
    assert_same(expected, found)


@pytest.mark.parametrize("correlation", ["tree", "none"])
def test_new_categories_take_the_places_of_the_least_likely(cfg: CfgNode, correlation: str) -> None:
    old, new, _ = grown(cfg, correlation, num_selected=3)
    best = leaf_by_score(old, best=True)
    copy_row(new, best)
    expected, found = detections(old), detections(new)
    chosen = found["selected_categories"].tolist()
    assert {5, 6} & set(chosen)
    kept = [k for k in chosen if k < len(OLD)]
    assert kept == expected["selected_categories"].tolist()[: len(kept)]
    before, after = scores_by_category(expected), scores_by_category(found)
    # The same row, so the same score.
    assert all(abs(after[k] - before[best]) < 1e-6 for k in chosen if k >= len(OLD))
    assert all(abs(after[k] - before[k]) < 1e-6 for k in kept)


def scores_by_category(output: dict[str, Any]) -> dict[int, Tensor]:
    pairs = zip(output["selected_categories"].tolist(), output["selection_scores"], strict=True)
    return dict(pairs)


def leaf_by_score(model: Any, *, best: bool) -> int:
    """The most or the least likely category without children, an id from 1 to 4."""
    scores = scores_of_all(model, sample())[1:]
    return 1 + int(scores.argmax() if best else scores.argmin())


def copy_row(model: Any, category: int) -> None:
    """Let the appended categories start from the row of another one."""
    with torch.no_grad():
        rows = model.categories.queries.embedding
        rows[len(OLD) :] = rows[category].clone()


def detections(model: Any) -> dict[str, Any]:
    with torch.no_grad():
        return model([sample()])[0]


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["selected_categories"].tolist() == b["selected_categories"].tolist()
    assert (a["selection_scores"] - b["selection_scores"]).abs().max() < 1e-6
    found, expected = b["instances"], a["instances"]
    assert found.pred_classes.tolist() == expected.pred_classes.tolist()
    assert (found.scores - expected.scores).abs().max() < 1e-6
    assert (found.pred_boxes.tensor - expected.pred_boxes.tensor).abs().max() < 1e-3


def test_self_attention_is_refused(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"attend to each other .*train it again"):
        grown(cfg, "self_attention", num_selected=2)


def test_a_new_parent_with_most_children_moves_old_queries(cfg: CfgNode) -> None:
    children = [(6, 7), (6, 8), (6, 9)]
    *_, change = grown(cfg, "tree", num_selected=2, given=space_of(6, 4, children))
    # The weight of Eq. 7 of category 1 was that of the most children.
    assert change > 1e-3
    *_, change = grown(cfg, "tree", num_selected=2, given=space_of(6, 4, children[:2]))
    assert change == 0


# Vocabularies -------------------------------------------------------------------------------------


def test_old_categories_keep_places_ids_and_edges() -> None:
    old = replace(OLD, image_counts=(5, 4, 3, 2, 1), novel=(False,) * 5)
    given = replace(space_of(4, 4, [(4, 6), (6, 7), (7, 5)]), synonyms=((), (), ("x",), ()))
    space = appended_space(old, given)
    assert space.names == ("c1", "c2", "c3", "c4", "c5", "c6", "c7")
    assert space.dataset_ids == tuple(range(1, 8))
    assert space.synonyms[5:] == (("x",), ())
    assert space.image_counts == (5, 4, 3, 2, 1, 0, 0)
    assert space.novel == (False,) * 5 + (True,) * 2
    assert space.instance_counts is None
    assert space.hierarchy is not None
    # A new category may be above an old one, whose query stays; not below.
    assert edges_of(space) == {(0, 1), (0, 2), (5, 6), (6, 4)}
    linked = appended_space(old, given, link_parents=True)
    assert edges_of(linked) == {(0, 1), (0, 2), (3, 5), (5, 6), (6, 4)}


def edges_of(space: CategorySpace) -> set[tuple[int, int]]:
    assert space.hierarchy is not None
    return {(a, b) for a, b in space.hierarchy.contracted().edges.tolist()}


def test_inner_nodes_that_are_no_category_stay() -> None:
    tree = CategoryHierarchy.from_ids(
        [("thing", "1"), ("thing", "2")], category_nodes=["1", "2", None]
    )
    old = replace(space_of(1, 3), hierarchy=tree)
    space = appended_space(old, space_of(4, 1))
    assert space.hierarchy is not None
    assert space.hierarchy.node_ids == ("thing", "1", "2", "added/4")
    assert space.hierarchy.category_nodes.tolist() == [1, 2, -1, 3]
    assert np.array_equal(space.hierarchy.edges, tree.edges)
    with pytest.raises(ValueError, match="outside the tree"):
        appended_space(old, space_of(3, 2, [(4, 3)]))


def test_a_flat_vocabulary_stays_flat() -> None:
    given = space_of(4, 2, [(4, 5)])
    assert appended_space(space_of(1, 3), given).hierarchy is None
    with pytest.raises(ValueError, match="the old vocabulary has no hierarchy"):
        appended_space(space_of(1, 3), given, link_parents=True)


@pytest.mark.parametrize(
    ("given", "link", "message"),
    [
        (CategorySpace(("c9",), (5,)), False, "id 5 is 'c5' in the old vocabulary and 'c9'"),
        (CategorySpace(("c5", "n"), (8, 9)), False, "1 new categories have the name .* 'c5'"),
        (space_of(2, 2), False, "all 2 given categories are in the vocabulary already"),
        (space_of(5, 2, [(6, 5)]), True, "no edge from an old category to a new one"),
        (NEW, True, "no edge from an old category to a new one"),
    ],
)
def test_vocabularies_that_do_not_fit(given: CategorySpace, link: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        appended_space(OLD, given, link_parents=link)


# Queries ------------------------------------------------------------------------------------------


def test_the_map_finds_what_training_did() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(300, 12, generator=generator), dim=1)
    moved = embeddings @ torch.randn(12, 12, generator=generator) + 0.3
    noise = 0.01 * torch.randn(300, 12, generator=generator)
    found = QueryMap.fit(embeddings[:250], (moved + noise)[:250])
    assert found.error < 0.01 < 0.1 * found.raw_error
    assert (found(embeddings[250:]) - moved[250:]).abs().max() < 0.05
    assert found(embeddings).dtype == torch.float32


def test_the_error_is_that_of_leaving_each_category_out() -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(14, 3, generator=generator, dtype=torch.float64)
    queries = 2 * embeddings + 0.5 * torch.randn(14, 3, generator=generator, dtype=torch.float64)
    found = QueryMap.fit(embeddings, queries)
    inputs = torch.cat([embeddings, torch.ones(14, 1, dtype=torch.float64)], dim=1)
    largest = torch.linalg.svdvals(inputs).max() ** 2

    def missed(share: float) -> float:
        total = 0.0
        for k in range(14):
            rest = [i for i in range(14) if i != k]
            x, y = inputs[rest], (queries - embeddings)[rest]
            weights = torch.linalg.solve(x.T @ x + share * largest * torch.eye(4).double(), x.T @ y)
            total += float((queries[k] - embeddings[k] - inputs[k] @ weights).square().sum())
        return total / 14

    assert found.error == pytest.approx(min(missed(10.0**k) for k in range(-6, 3)), rel=1e-9)


def test_the_error_of_the_mean_is_that_of_leaving_each_out() -> None:
    queries = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    missed = [
        (queries[k] - queries[[i for i in range(9) if i != k]].mean(dim=0)).square().sum()
        for k in range(9)
    ]
    found = QueryMap.fit(torch.zeros(9, 2).double().repeat(1, 2), queries)
    assert found.mean_error == pytest.approx(float(sum(missed)) / 9, rel=1e-12)
    assert QueryMap.fit(queries[:1], queries[:1]).mean_error == float("inf")


def test_noise_leaves_embeddings_as_they_are() -> None:
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(40, 30, generator=generator)
    found = QueryMap.fit(embeddings, embeddings + torch.randn(40, 30, generator=generator))
    assert found.error == found.raw_error or found.error > 0.9 * found.raw_error
    same = QueryMap.fit(embeddings, embeddings)
    assert same.raw_error == same.error == 0
    assert torch.equal(same(embeddings), embeddings)


def test_old_rows_and_all_other_weights_are_the_same() -> None:
    weights = {ROWS: torch.randn(5, 4), "neck.weight": torch.randn(2)}
    found, _ = add_rows(weights, torch.randn(8, 4), 5)
    assert torch.equal(found[ROWS][:5], weights[ROWS])
    assert found[ROWS].shape == (8, 4)
    assert found["neck.weight"] is weights["neck.weight"]


@pytest.mark.parametrize(
    ("weights", "width", "message"),
    [
        ({"fc": torch.zeros(1)}, 4, f"no {ROWS}; expected those of a CQDINO"),
        ({ROWS: torch.zeros(6, 4)}, 4, "queries of 6 categories, the vocabulary 5"),
        ({ROWS: torch.zeros(5, 4)}, 3, "embeddings of 3 numbers for queries of 4"),
    ],
)
def test_weights_that_do_not_fit(weights: dict[str, Tensor], width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_rows(weights, torch.zeros(7, width), 5)
