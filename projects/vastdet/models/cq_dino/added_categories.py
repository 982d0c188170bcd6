# SPDX-License-Identifier: Apache-2.0
"""Categories that a trained model learns to know by their names alone, without training.

C trained categories, D channels of a category query.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from vastdet.models.cq_dino.build import build_correlation
from vastdet.models.cq_dino.category_queries import CategoryQueries
from vastdet.vocabulary import CategoryHierarchy, CategorySpace
from vastdet.vocabulary.hierarchy import NO_NODE

QUERIES = "categories.queries."
ROWS = f"{QUERIES}embedding"
# Strengths of the ridge that are tried, as shares of the largest squared singular value.
STRENGTHS = 10.0 ** np.arange(-6, 3)
# Of old queries, whose rows, edges and weights are the same, in two vocabularies.
ROUNDING = 1e-5


@dataclass(frozen=True)
class QueryMap:
    """From a text embedding to the query that training would have made of it.

    Attributes:
        weights: (D + 1, D), of an embedding and a one: what is added to the embedding. Zeros leave
            embeddings as they are.
        raw_error: the mean squared distance of trained queries from their embeddings.
        error: that of trained queries from what the map makes of their embeddings, each left out
            when the map was fitted. It is never above `raw_error`.
        mean_error: that of trained queries from the mean of the others, infinite for one category.
            Where `error` is above it, the embeddings say nothing of the queries.
    """

    weights: Tensor
    raw_error: float
    error: float
    mean_error: float

    @classmethod
    def fit(cls, embeddings: Tensor, queries: Tensor) -> "QueryMap":
        """Fit embeddings (C, D) to trained queries (C, D) by ridge regression of the difference.

        The strength of the ridge is that of the least error with each category left out in turn.
        If no strength is better than the embeddings themselves, the map leaves them as they are.
        """
        inputs = _with_one(embeddings.double())
        moved = queries.double() - embeddings.double()
        raw_error = float(moved.square().sum(dim=1).mean())
        left, values, right = torch.linalg.svd(inputs, full_matrices=False)
        squares = values.square()
        best, weights = raw_error, torch.zeros_like(right.T @ (left.T @ moved))
        for strength in (STRENGTHS * float(squares.max())).tolist():
            shrunk = squares / (squares + strength)
            # What a fit without this row would miss, by the hat matrix of the fit with all.
            own = (left.square() * shrunk).sum(dim=1, keepdim=True)
            missed = (moved - left @ (shrunk[:, None] * (left.T @ moved))) / (1 - own)
            error = float(missed.square().sum(dim=1).mean())
            if error < best:
                factor = values / (squares + strength)
                best, weights = error, right.T @ (factor[:, None] * (left.T @ moved))
        return cls(weights, raw_error, best, _error_of_the_mean(queries.double()))

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Embeddings (N, D) to queries (N, D), of the same type."""
        added = _with_one(embeddings.double()) @ self.weights
        return (embeddings.double() + added).to(embeddings.dtype)


def _error_of_the_mean(rows: Tensor) -> float:
    """The mean squared distance of rows (C, D) from the mean of the others, infinite for one."""
    if len(rows) < 2:
        return math.inf
    distance = (rows - rows.mean(dim=0)).square().sum(dim=1).mean()
    return float(distance) * (len(rows) / (len(rows) - 1)) ** 2


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


# Vocabularies -------------------------------------------------------------------------------------


def appended_space(
    old: CategorySpace, given: CategorySpace, *, link_parents: bool = False
) -> CategorySpace:
    """The old categories in their places, followed by those of `given` that are new.

    Args:
        old: the vocabulary of a trained model.
        given: the new categories; old ones may be among them, by the same dataset id and name.
        link_parents: whether old categories become parents of new ones, as the hierarchy of `given`
            says. Their queries then change.

    Raises:
        ValueError: nothing is new, an id has another name, a new category has the name of an old
            one, or parents are to be linked and there is no such edge.
    """
    known = dict(zip(old.dataset_ids, old.names, strict=True))
    new = [k for k, dataset_id in enumerate(given.dataset_ids) if dataset_id not in known]
    for dataset_id, name in zip(given.dataset_ids, given.names, strict=True):
        if known.get(dataset_id, name) != name:
            raise ValueError(
                f"category id {dataset_id} is '{known[dataset_id]}' in the old vocabulary and "
                f"'{name}' in the new one; give new categories ids of their own"
            )
    clashes = sorted({given.names[k] for k in new} & set(old.names))
    if clashes:
        raise ValueError(
            f"{len(clashes)} new categories have the name of an old one under another id, such as "
            f"'{clashes[0]}'; rename them, or leave them out"
        )
    if not new:
        raise ValueError(
            f"all {len(given)} given categories are in the vocabulary already; give at least one "
            "that is new"
        )
    fields = {
        field: (*getattr(old, field), *(getattr(given, field)[k] for k in new))
        for field in ("names", "dataset_ids", "synonyms", "descriptions", "synsets", "frequency")
    }
    counts = {
        # They were in no training image.
        field: (*getattr(old, field), *(0 for _ in new))
        for field in ("image_counts", "instance_counts")
        if getattr(old, field) is not None
    }
    novel = None if old.novel is None else (*old.novel, *(True for _ in new))
    if old.hierarchy is None and link_parents:
        raise ValueError("parents are to be linked, but the old vocabulary has no hierarchy")
    hierarchy = None
    if old.hierarchy is not None:
        hierarchy = _appended_hierarchy(old, given, new, link_parents)
    return CategorySpace(**fields, **counts, novel=novel, hierarchy=hierarchy)


def _appended_hierarchy(
    old: CategorySpace, given: CategorySpace, new: list[int], link_parents: bool
) -> CategoryHierarchy:
    """The old nodes and edges, a node for each new category, and their edges."""
    tree = old.hierarchy
    assert tree is not None
    nodes = np.concatenate([tree.category_nodes, len(tree) + np.arange(len(new))])
    place = {dataset_id: k for k, dataset_id in enumerate(old.dataset_ids)}
    place.update({given.dataset_ids[k]: len(old) + i for i, k in enumerate(new)})
    edges, linked = [], 0
    if given.hierarchy is not None:
        for pair in given.hierarchy.contracted().edges.tolist():
            parent, child = (place[given.dataset_ids[k]] for k in pair)
            is_link = parent < len(old) <= child
            if parent >= len(old) or (link_parents and is_link):
                edges.append((nodes[parent], nodes[child]))
                linked += is_link
    if link_parents and not linked:
        raise ValueError(
            "parents are to be linked, but the given hierarchy has no edge from an old category to "
            "a new one; give a vocabulary with both, and a tree"
        )
    if any(NO_NODE in edge for edge in edges):
        raise ValueError("an old category outside the tree cannot be above or below a new one")
    return CategoryHierarchy(
        node_ids=(*tree.node_ids, *(f"added/{given.dataset_ids[k]}" for k in new)),
        node_names=(*tree.node_names, *(given.names[k] for k in new)),
        edges=np.concatenate([tree.edges, np.array(edges, dtype=np.int64).reshape(-1, 2)]),
        category_nodes=nodes,
    )


# Weights ------------------------------------------------------------------------------------------


def add_rows(
    weights: Mapping[str, Tensor], embeddings: Tensor, num_old: int
) -> tuple[dict[str, Tensor], QueryMap]:
    """The weights of a trained model with a query for each new category.

    Args:
        weights: name -> tensor.
        embeddings: of the old categories, then of the new ones (C + N, D): one text encoder's.
        num_old: C.

    Returns:
        The weights, of which all are the same objects but the queries, and the map that made the
        new ones.

    Raises:
        ValueError: the weights have no category queries, not C of them, or of another width.
    """
    if ROWS not in weights:
        raise ValueError(f"the weights have no {ROWS}; expected those of a CQDINO")
    rows = weights[ROWS]
    if len(rows) != num_old:
        raise ValueError(
            f"the weights have queries of {len(rows)} categories, the vocabulary {num_old}; give "
            "the config and the vocabulary that they were trained with"
        )
    if embeddings.shape[1] != rows.shape[1]:
        raise ValueError(
            f"embeddings of {embeddings.shape[1]} numbers for queries of {rows.shape[1]}; give a "
            "file of the encoder that the model was trained from"
        )
    query_map = QueryMap.fit(embeddings[:num_old], rows)
    new = query_map(embeddings[num_old:]).to(rows.dtype)
    return {**weights, ROWS: torch.cat([rows, new])}, query_map


def change_of_old_queries(
    node: CfgNode, weights: Mapping[str, Tensor], old: CategorySpace, space: CategorySpace
) -> float:
    """How far the queries of old categories move by the new ones beside them, at most.

    Args:
        node: `MODEL.CQ_DINO`.
        weights: with the new categories.
        old: without them.
        space: with them.

    Raises:
        ValueError: categories attend to each other, so that every query depends on all.
    """
    if node.CATEGORY.CORRELATION == "self_attention":
        raise ValueError(
            "the categories of this model attend to each other (MODEL.CQ_DINO.CATEGORY.CORRELATION "
            "self_attention): a new one would change what every old one has learned; train it again"
        )
    queries = []
    for vocabulary in (old, space):
        module = CategoryQueries(
            weights[ROWS][: len(vocabulary)], correlation=build_correlation(node, vocabulary)
        )
        own = {k.removeprefix(QUERIES): x for k, x in weights.items() if k.startswith(QUERIES)}
        own["embedding"] = module.embedding
        module.load_state_dict(own)
        with torch.no_grad():
            queries.append(module()[: len(old)])
    return float((queries[1] - queries[0]).abs().max())
