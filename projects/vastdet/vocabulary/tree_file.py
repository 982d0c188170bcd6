# SPDX-License-Identifier: Apache-2.0
"""V3Det's category tree file, read into a `CategoryHierarchy`."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vastdet.vocabulary.hierarchy import NO_NODE, CategoryHierarchy

logger = logging.getLogger(__name__)

Edge = tuple[str, str]


def parse_tree(tree: Any, dataset_ids: Sequence[int], *, where: str) -> CategoryHierarchy:
    """The hierarchy of a V3Det category tree (arXiv 2304.03752) over some categories.

    The keys of V3Det's file, whichever are there: `categoryid2treeid` (needed), `id2name`,
    `father2child` and `child2father` (direct relations, joined), `ancestor2descendant` and
    `descendant2ancestor` (used where no direct relation is given: the edges are then the
    transitive reduction). Empty entries are skipped. Categories of the file that are not among
    `dataset_ids` are left out, categories without a node in the file are outside the graph.

    Args:
        tree: the content of the file.
        dataset_ids: the dataset ids of the K categories, in contiguous order.
        where: what to call the file in messages.

    Raises:
        ValueError: a needed key is missing, a relation names an unknown node, or there is a cycle.
    """
    if not isinstance(tree, Mapping) or not isinstance(tree.get("categoryid2treeid"), Mapping):
        keys = sorted(tree) if isinstance(tree, Mapping) else type(tree).__name__
        raise ValueError(
            f"{where} is no category tree: expected an object with 'categoryid2treeid' and "
            f"'father2child' or 'ancestor2descendant', got {keys}"
        )
    direct = _relation(tree, "father2child", "child2father", where)
    closure = _relation(tree, "ancestor2descendant", "descendant2ancestor", where)
    node_of = {str(key): value for key, value in tree["categoryid2treeid"].items()}
    category_nodes = [node_of.get(str(dataset_id)) or None for dataset_id in dataset_ids]
    id2name = tree.get("id2name")
    try:
        hierarchy = CategoryHierarchy.from_ids(
            direct or closure, category_nodes=category_nodes, node_names=id2name
        )
    except ValueError as error:
        raise ValueError(f"category tree {where}: {error}") from error
    without = [i for i, node in zip(dataset_ids, category_nodes, strict=True) if node is None]
    if without:
        logger.warning(
            f"{len(without)} of {len(dataset_ids)} categories have no node in the category tree "
            f"{where}, the first has id {without[0]}; they are neither parents nor children"
        )
    if not direct:
        return hierarchy.transitive_reduction()
    if closure:
        _compare(hierarchy, closure, where)
    return hierarchy


def node_texts(
    hierarchy: CategoryHierarchy, texts: Mapping[str, str], fallback: Sequence[str]
) -> tuple[str, ...]:
    """A text for each category: `fallback`'s, or if that is empty its node's in `texts`, or ''."""
    return tuple(
        given or (str(texts.get(hierarchy.node_ids[node]) or "") if node != NO_NODE else "")
        for given, node in zip(fallback, hierarchy.category_nodes, strict=True)
    )


def _relation(tree: Mapping[str, Any], down: str, up: str, where: str) -> dict[Edge, None]:
    """Edges (upper, lower) that either direction of a relation states, in the file's order."""
    edges = dict.fromkeys(_pairs(tree, down, where))
    edges.update(dict.fromkeys((upper, lower) for lower, upper in _pairs(tree, up, where)))
    return edges


def _pairs(tree: Mapping[str, Any], key: str, where: str) -> Iterator[Edge]:
    for node, others in (tree.get(key) or {}).items():
        if isinstance(others, str):
            others = [others]
        if not (others is None or isinstance(others, list)):
            raise ValueError(
                f"category tree {where}: {key}[{node!r}] is {others!r}, expected a list of ids"
            )
        for other in others or ():
            if node and other:
                yield node, other


def _compare(hierarchy: CategoryHierarchy, closure: Mapping[Edge, None], where: str) -> None:
    """Say so when the file's ancestors are not those that its direct relations imply."""
    ids = hierarchy.node_ids
    below, above = hierarchy.ancestor_matrix.nonzero()
    implied = {(ids[a], ids[b]) for a, b in zip(above.tolist(), below.tolist(), strict=True)}
    missing, extra = implied - closure.keys(), closure.keys() - implied
    if missing or extra:
        example = min(missing or extra)
        logger.warning(
            f"category tree {where} contradicts itself: of the pairs (ancestor, descendant) that "
            f"its direct relations imply {len(missing)} are not listed, and {len(extra)} listed "
            f"ones are not implied (such as {example}); the direct relations are used"
        )
