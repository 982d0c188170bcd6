# SPDX-License-Identifier: Apache-2.0
"""The hierarchy over the categories of a vocabulary, as a directed acyclic graph in arrays.

Legend: N nodes, E edges, K categories, P pairs. A node is a position 0..N-1, a category is a
contiguous id 0..K-1. Inner nodes need not be categories, and a node may have several parents.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

NO_NODE = -1
MAX_NAMED = 5


@dataclass(frozen=True, eq=False, repr=False)
class CategoryHierarchy:
    """An immutable DAG of nodes, some or all of which are categories.

    Attributes:
        node_ids: N unique strings.
        node_names: N names for people; not necessarily unique.
        edges: (E, 2) int64, rows (parent node, child node), unique and sorted.
        category_nodes: (K,) int64, the node of each category, -1 for a category outside the graph.

    Raises:
        ValueError: a node id occurs twice, an edge or a category names no node, or there is a
            cycle; the message names the offenders, a cycle as the path along it.
    """

    node_ids: tuple[str, ...]
    node_names: tuple[str, ...]
    edges: np.ndarray
    category_nodes: np.ndarray

    def __post_init__(self) -> None:
        if len(self.node_names) != len(self.node_ids):
            raise ValueError(
                f"{len(self.node_names)} node names for {len(self.node_ids)} node ids; "
                "give one name a node"
            )
        if len(self._index) != len(self.node_ids):
            seen: set[str] = set()
            twice = [i for i in self.node_ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
            raise ValueError(f"node ids must be unique; given twice: {_some(twice)}")
        edges = np.asarray(self.edges, dtype=np.int64).reshape(-1, 2)
        nodes = np.array(self.category_nodes, dtype=np.int64).reshape(-1)
        for what, values, low in (("edge", edges, 0), ("category", nodes, NO_NODE)):
            outside = values[(values < low) | (values >= len(self.node_ids))]
            if outside.size:
                raise ValueError(
                    f"{what} node positions {_some(outside.tolist())} are outside "
                    f"{low}..{len(self.node_ids) - 1}"
                )
        edges = np.unique(edges, axis=0)
        for array in (edges, nodes):
            array.flags.writeable = False
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "category_nodes", nodes)
        if (self.depths < 0).any():
            raise ValueError(f"the hierarchy has a cycle: {self._describe_cycle()}")

    @classmethod
    def from_ids(
        cls,
        edges: Iterable[tuple[str, str]],
        *,
        category_nodes: Sequence[str | None],
        node_names: Mapping[str, str] | None = None,
    ) -> "CategoryHierarchy":
        """Build from pairs (parent id, child id).

        Args:
            edges: the pairs; repeats are harmless.
            category_nodes: the node id of each of the K categories, None for one that has none.
            node_names: names of all nodes; when given, any other id is an error. Without it the
                nodes are those that the edges and the categories name, each called by its id.

        Raises:
            ValueError: unknown ids, or a cycle.
        """
        edges = list(edges)
        used = dict.fromkeys(node for edge in edges for node in edge)
        used.update(dict.fromkeys(node for node in category_nodes if node is not None))
        if node_names is None:
            node_names = {node: node for node in used}
        unknown = [node for node in used if node not in node_names]
        if unknown:
            raise ValueError(
                f"{len(unknown)} node ids of the hierarchy are not among its {len(node_names)} "
                f"nodes: {_some(unknown)}"
            )
        index = {node: position for position, node in enumerate(node_names)}
        pairs = [(index[parent], index[child]) for parent, child in edges]
        return cls(
            node_ids=tuple(node_names),
            node_names=tuple(node_names.values()),
            edges=np.array(pairs, dtype=np.int64).reshape(-1, 2),
            category_nodes=np.array(
                [NO_NODE if node is None else index[node] for node in category_nodes],
                dtype=np.int64,
            ),
        )

    def __len__(self) -> int:
        return len(self.node_ids)

    def __repr__(self) -> str:
        return f"CategoryHierarchy({len(self)} nodes, {len(self.edges)} edges)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CategoryHierarchy):
            return NotImplemented
        return (
            self.node_ids == other.node_ids
            and self.node_names == other.node_names
            and np.array_equal(self.edges, other.edges)
            and np.array_equal(self.category_nodes, other.category_nodes)
        )

    def __hash__(self) -> int:
        return hash((self.node_ids, len(self.edges)))

    @property
    def num_categories(self) -> int:
        """K, also counting the categories outside the graph."""
        return len(self.category_nodes)

    def node_index(self, node_id: str) -> int:
        """The position of a node id; ValueError if there is none."""
        if node_id not in self._index:
            raise ValueError(f"no node {node_id!r} among the {len(self)} nodes of the hierarchy")
        return self._index[node_id]

    def parents(self, node: int) -> np.ndarray:
        """The direct parents of a node, ascending."""
        return _row(self._parent_matrix, node)

    def children(self, node: int) -> np.ndarray:
        """The direct children of a node, ascending."""
        return _row(self._child_matrix, node)

    def ancestors(self, node: int) -> np.ndarray:
        """All nodes above a node, without itself, ascending."""
        return _row(self.ancestor_matrix, node)

    def descendants(self, node: int) -> np.ndarray:
        """All nodes below a node, without itself, ascending."""
        return _row(self._descendant_matrix, node)

    def path_from_root(self, node: int) -> list[int]:
        """A longest path from a root to a node, both included.

        Of parents that are equally deep the first is taken.
        """
        path = [node]
        while (above := self.parents(path[-1])).size:
            path.append(int(above[self.depths[above].argmax()]))
        return path[::-1]

    @cached_property
    def depths(self) -> np.ndarray:
        """(N,) the longest path from a root, 0 for roots: every child is deeper than its parents.

        (-1 marks nodes on or below a cycle, which the constructor refuses.)
        """
        depths = np.full(len(self), -1, dtype=np.int64)
        waiting = np.bincount(self.edges[:, 1], minlength=len(self))
        level = np.flatnonzero(waiting == 0)
        depth = 0
        while level.size:
            depths[level] = depth
            reached = self._child_matrix[level].indices
            np.subtract.at(waiting, reached, 1)
            level = np.unique(reached[waiting[reached] == 0])
            depth += 1
        return depths

    @property
    def num_levels(self) -> int:
        """The number of distinct depths."""
        return int(self.depths.max()) + 1 if len(self) else 0

    def levels(self) -> tuple[np.ndarray, ...]:
        """The nodes of each depth, from the roots down."""
        return tuple(np.flatnonzero(self.depths == depth) for depth in range(self.num_levels))

    def level_edges(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """All edges that leave the nodes of one depth, as (parents, children), sorted by parent.

        Going through the depths from the last to the first handles each parent after all its
        children, one vectorised step a level.
        """
        at_depth = self.depths[self.edges[:, 0]] == depth
        return self.edges[at_depth, 0], self.edges[at_depth, 1]

    @cached_property
    def topological_order(self) -> np.ndarray:
        """(N,) the nodes so that parents come before their children."""
        return np.argsort(self.depths, kind="stable")

    @property
    def roots(self) -> np.ndarray:
        """The nodes without parents."""
        return np.flatnonzero(self.depths == 0)

    @property
    def leaves(self) -> np.ndarray:
        """The nodes without children."""
        return np.flatnonzero(np.bincount(self.edges[:, 0], minlength=len(self)) == 0)

    def categories_at(self, node: int) -> np.ndarray:
        """The categories of a node: none for an inner node, usually one."""
        return np.flatnonzero(self.category_nodes == node)

    @cached_property
    def ancestor_matrix(self) -> sparse.csr_matrix:
        """(N, N) boolean, True at (node, ancestor)."""
        step = reach = self._parent_matrix
        while step.nnz:
            step = step @ self._parent_matrix
            reach = reach + step
        reach.sort_indices()
        return reach

    @cached_property
    def category_ancestor_pairs(self) -> np.ndarray:
        """(P, 2) all pairs (category, category above it), in contiguous ids, sorted.

        Two categories at the same node are not above each other.
        """
        categories = np.flatnonzero(self.category_nodes != NO_NODE)
        nodes = self.category_nodes[categories]
        below, above = self.ancestor_matrix[nodes][:, nodes].nonzero()
        pairs = np.stack([categories[below], categories[above]], axis=1)
        return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]

    def transitive_reduction(self) -> "CategoryHierarchy":
        """The same order with the fewest edges: none that a longer path makes superfluous.

        Turns a list of all ancestors into one of parents.
        """
        reach = self.ancestor_matrix
        by_detour = reach.multiply(reach @ reach)
        child, parent = (reach.astype(np.int8) - by_detour.astype(np.int8)).nonzero()
        edges = np.stack([parent, child], axis=1)
        return CategoryHierarchy(self.node_ids, self.node_names, edges, self.category_nodes)

    def category_graph(self) -> "CategoryHierarchy":
        """The hierarchy among the K categories alone: node k is category k.

        A category's parents are the nearest categories above it; inner nodes that are not
        categories are skipped. A category outside the graph is a node without edges.
        """
        return self._among_categories(self.category_ancestor_pairs[:, ::-1]).transitive_reduction()

    def contracted(self) -> "CategoryHierarchy":
        """The hierarchy without the nodes that are no category: node k is category k.

        A path from category to category that meets no third one becomes one edge. Other than in
        `category_graph`, an edge stays where a longer path over other categories leads as far: a
        category has the children here that it has in the hierarchy.
        """
        categories = np.flatnonzero(self.category_nodes != NO_NODE)
        nodes = self.category_nodes[categories]
        is_inner = np.ones(len(self), dtype=bool)
        is_inner[nodes] = False
        through = self.edges[is_inner[self.edges[:, 1]]]
        past_inner = self._edge_matrix(through[:, 1], through[:, 0])
        step = reach = self._parent_matrix[nodes]
        while step.nnz:
            step = step @ past_inner
            reach = reach + step
        below, above = reach[:, nodes].nonzero()
        return self._among_categories(np.stack([categories[above], categories[below]], axis=1))

    def _among_categories(self, edges: np.ndarray) -> "CategoryHierarchy":
        """A hierarchy of K nodes, node k being category k, with edges of contiguous ids."""
        nodes = self.category_nodes
        known = nodes != NO_NODE
        ids = [self.node_ids[n] if n != NO_NODE else "" for n in nodes]
        names = [self.node_names[n] if n != NO_NODE else "" for n in nodes]
        # Ids are made unique by the position: two categories may sit at one node.
        return CategoryHierarchy(
            node_ids=tuple(f"{k}:{node}" for k, node in enumerate(ids)),
            node_names=tuple(names),
            edges=edges,
            category_nodes=np.where(known, np.arange(len(nodes)), NO_NODE),
        )

    @cached_property
    def _index(self) -> dict[str, int]:
        return {node: position for position, node in enumerate(self.node_ids)}

    @cached_property
    def _child_matrix(self) -> sparse.csr_matrix:
        return self._edge_matrix(self.edges[:, 0], self.edges[:, 1])

    @cached_property
    def _parent_matrix(self) -> sparse.csr_matrix:
        return self._edge_matrix(self.edges[:, 1], self.edges[:, 0])

    @cached_property
    def _descendant_matrix(self) -> sparse.csr_matrix:
        matrix = self.ancestor_matrix.T.tocsr()
        matrix.sort_indices()
        return matrix

    def _edge_matrix(self, rows: np.ndarray, columns: np.ndarray) -> sparse.csr_matrix:
        ones = np.ones(len(rows), dtype=bool)
        matrix = sparse.csr_matrix((ones, (rows, columns)), shape=(len(self), len(self)))
        matrix.sort_indices()
        return matrix

    def _describe_cycle(self) -> str:
        """One cycle, from parent to child, as `a (name) -> b (name) -> a (name)`."""
        path = [int(np.flatnonzero(self.depths < 0)[0])]
        while path[-1] not in path[:-1]:
            # A node that no root order reaches has a parent that none reaches either.
            above = self.parents(path[-1])
            path.append(int(above[self.depths[above] < 0][0]))
        cycle = path[path.index(path[-1]) :][::-1]
        return " -> ".join(f"{self.node_ids[n]} ({self.node_names[n]})" for n in cycle)


def _row(matrix: sparse.csr_matrix, node: int) -> np.ndarray:
    if not 0 <= node < matrix.shape[0]:
        raise ValueError(f"node {node} is outside 0..{matrix.shape[0] - 1}")
    return matrix.indices[matrix.indptr[node] : matrix.indptr[node + 1]].astype(np.int64)


def _some(values: Sequence[object]) -> str:
    """The first few values, for a message."""
    shown = ", ".join(str(value) for value in values[:MAX_NAMED])
    return shown + (f" and {len(values) - MAX_NAMED} more" if len(values) > MAX_NAMED else "")
