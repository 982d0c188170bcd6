# SPDX-License-Identifier: Apache-2.0
"""The authors' small inputs and outputs of the category side, and random hierarchies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vastdet.vocabulary import CategoryHierarchy


def read(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "cq_dino_units" / f"{name}.pt", weights_only=True)


def hierarchy_of(rows: Sequence[Mapping[str, Any]]) -> CategoryHierarchy:
    """The hierarchy that the authors' rows of a category with its children describe."""
    assert [row["category_id"] for row in rows] == list(range(len(rows)))
    edges = [(str(row["category_id"]), str(child)) for row in rows for child in row["children"]]
    return CategoryHierarchy.from_ids(edges, category_nodes=[str(k) for k in range(len(rows))])


def random_hierarchy(
    seed: int, *, num_nodes: int = 40, density: float = 0.08, all_categories: bool = True
) -> CategoryHierarchy:
    """A DAG with nodes of several parents; nodes are categories, some of them or all."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_nodes)
    upper = np.triu(rng.random((num_nodes, num_nodes)) < density, k=1)
    names = {str(n): f"node {n}" for n in range(num_nodes)}
    nodes: list[str | None] = list(names)
    if not all_categories:
        nodes = [str(n) for n in rng.permutation(num_nodes)[: num_nodes // 2]]
        nodes[3] = None
    edges = [(str(order[a]), str(order[b])) for a, b in zip(*upper.nonzero(), strict=True)]
    return CategoryHierarchy.from_ids(edges, category_nodes=nodes, node_names=names)
