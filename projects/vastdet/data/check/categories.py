# SPDX-License-Identifier: Apache-2.0
"""Checks of the categories of a dataset: ids, names, use, a category space, a category tree."""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Any

import numpy as np

from vastdet.data.check import kinds
from vastdet.data.check.report import Report
from vastdet.data.check.source import Dataset
from vastdet.vocabulary import CategorySpace

# Tables of V3Det's tree file: direct relations and their transitive closure, each both ways.
DOWNWARD = ("father2child", "ancestor2descendant")
UPWARD = ("child2father", "descendant2ancestor")
# Each takes a pass over the tree; by then it is clear that the file is damaged.
MAX_CYCLES = 20

Edge = tuple[str, str]


def check_categories(dataset: Dataset, used: np.ndarray, report: Report) -> set[int]:
    """Check ids, names and use; return the positions of the categories that a clean copy drops.

    Args:
        dataset: the dataset.
        used: positions of the categories that annotations have, -1 for an unknown one.
        report: gets the findings.
    """
    categories = dataset["categories"]
    drop: set[int] = set()
    seen: set[Any] = set()
    holders: dict[str, list[Any]] = {}
    for index, category in enumerate(categories):
        if category["id"] in seen:
            drop.add(index)
            continue
        seen.add(category["id"])
        holders.setdefault(str(category.get("name") or ""), []).append(category["id"])
    nameless = holders.pop("", [])
    shared = {name: ids for name, ids in holders.items() if len(ids) > 1}
    empty = sorted(set(range(len(categories))) - set(used.tolist()) - drop)
    report.add(kinds.CATEGORY_ID_DUPLICATE, [str(categories[index]) for index in sorted(drop)])
    report.add(kinds.CATEGORY_WITHOUT_NAME, [f"category {identity}" for identity in nameless])
    report.add(
        kinds.CATEGORY_NAME_DUPLICATE, [f"{name!r}: ids {ids}" for name, ids in shared.items()]
    )
    report.add(
        kinds.CATEGORY_EMPTY,
        [f"{categories[index]['id']} {categories[index].get('name')!r}" for index in empty],
    )
    return drop


def check_space(dataset: Dataset, space: CategorySpace, report: Report) -> None:
    """Compare the ids and names of the categories with those of a category space."""
    ours = {category["id"]: category.get("name") for category in dataset["categories"]}
    theirs = dict(zip(space.dataset_ids, space.names, strict=True))
    examples = [f"category {i} {ours[i]!r} is not in the space" for i in ours.keys() - theirs]
    examples += [f"category {i} {theirs[i]!r} is not in the dataset" for i in theirs.keys() - ours]
    examples += [
        f"category {i} is {ours[i]!r} here and {theirs[i]!r} in the space"
        for i in ours.keys() & theirs.keys()
        if ours[i] != theirs[i]
    ]
    report.add(kinds.CATEGORY_SPACE, examples)


def check_tree(dataset: Dataset, tree: Mapping[str, Any], report: Report) -> None:
    """Compare the categories with a V3Det category tree, and check the tree itself.

    Raises:
        ValueError: the tree has no `categoryid2treeid`.
    """
    if not isinstance(tree.get("categoryid2treeid"), Mapping):
        raise ValueError(
            "the category tree has no 'categoryid2treeid'; expected an object with the keys of "
            f"V3Det's tree file, got {sorted(tree)[:8]}"
        )
    node_of = {str(key): node for key, node in tree["categoryid2treeid"].items()}
    names = {str(category["id"]): category.get("name") for category in dataset["categories"]}
    report.add(
        kinds.TREE_CATEGORY_MISSING,
        [f"category {i} {name!r}" for i, name in names.items() if not node_of.get(i)],
    )
    report.add(
        kinds.TREE_CATEGORY_UNKNOWN,
        [f"category {i}, node {node}" for i, node in node_of.items() if i not in names],
    )
    tables = {key: set(_edges(tree, key)) for key in DOWNWARD + UPWARD if tree.get(key)}
    edges = sorted(set().union(*tables.values()))
    if isinstance(tree.get("id2name"), Mapping):
        mentioned = {*node_of.values(), *(node for edge in edges for node in edge)} - {None, ""}
        unknown = sorted(str(node) for node in mentioned - tree["id2name"].keys())
        report.add(kinds.TREE_NODE_UNKNOWN, [f"node {node} is not in id2name" for node in unknown])
    disagreements = []
    for down, up in zip(DOWNWARD, UPWARD, strict=True):
        if down in tables and up in tables:
            for upper, lower in sorted(tables[down] ^ tables[up]):
                where = (down, up) if (upper, lower) in tables[down] else (up, down)
                disagreements.append(f"{upper} above {lower}: in {where[0]}, not in {where[1]}")
    report.add(kinds.TREE_INCONSISTENT, disagreements)
    report.add(kinds.TREE_CYCLE, list(islice(_cycles(edges), MAX_CYCLES)))


def _edges(tree: Mapping[str, Any], key: str) -> Iterator[Edge]:
    """Pairs (upper, lower) of nodes that one table of the tree states."""
    for node, others in tree[key].items():
        for other in [others] if isinstance(others, str) else others or ():
            yield (node, other) if key in DOWNWARD else (other, node)


def _cycles(edges: list[Edge]) -> Iterator[str]:
    """One path for each cycle met, breaking each to find the next."""
    while True:
        parents: dict[str, list[str]] = {}
        for upper, lower in edges:
            parents.setdefault(lower, []).append(upper)
        try:
            TopologicalSorter(parents).prepare()
        except CycleError as error:
            path = error.args[1]
            yield " -> ".join(path)
            # The path goes from a parent to its child.
            edges = [edge for edge in edges if edge != (path[0], path[1])]
            continue
        return
