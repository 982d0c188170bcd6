# SPDX-License-Identifier: Apache-2.0
"""CategoryHierarchy against brute-force walks, and its errors."""

import itertools

import numpy as np
import pytest

from vastdet.vocabulary import CategoryHierarchy

# entity -> animal -> {dog, pet}; pet -> dog (two parents), entity -> thing; "alone" has no edge.
EDGES = [
    ("entity", "animal"),
    ("animal", "dog"),
    ("animal", "pet"),
    ("pet", "dog"),
    ("entity", "thing"),
]
CATEGORIES = ["dog", "animal", None, "thing", "alone"]


@pytest.fixture
def graph() -> CategoryHierarchy:
    return CategoryHierarchy.from_ids(EDGES, category_nodes=CATEGORIES)


def ids(graph: CategoryHierarchy, nodes: np.ndarray) -> set[str]:
    return {graph.node_ids[n] for n in nodes}


def random_graph(seed: int, num_nodes: int = 40) -> CategoryHierarchy:
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_nodes)
    upper = np.triu(rng.random((num_nodes, num_nodes)) < 0.08, k=1)
    edges = [(str(order[a]), str(order[b])) for a, b in zip(*upper.nonzero(), strict=True)]
    nodes = [None if rng.random() < 0.1 else str(n) for n in rng.integers(num_nodes, size=25)]
    names = {str(n): f"node {n}" for n in range(num_nodes)}
    return CategoryHierarchy.from_ids(edges, category_nodes=nodes, node_names=names)


def walk_up(graph: CategoryHierarchy, node: int) -> set[int]:
    found: set[int] = set()
    for parent, child in graph.edges.tolist():
        if child == node:
            found |= {parent} | walk_up(graph, parent)
    return found


def test_relations(graph: CategoryHierarchy) -> None:
    dog = graph.node_index("dog")
    assert ids(graph, graph.parents(dog)) == {"animal", "pet"}
    assert ids(graph, graph.ancestors(dog)) == {"animal", "pet", "entity"}
    assert ids(graph, graph.children(graph.node_index("animal"))) == {"dog", "pet"}
    assert ids(graph, graph.descendants(graph.node_index("entity"))) == set(graph.node_ids) - {
        "entity",
        "alone",
    }
    assert ids(graph, graph.roots) == {"entity", "alone"}
    assert ids(graph, graph.leaves) == {"dog", "thing", "alone"}
    assert graph.categories_at(dog).tolist() == [0]
    assert graph.categories_at(graph.node_index("pet")).size == 0


def test_depth_is_the_longest_path(graph: CategoryHierarchy) -> None:
    depth = dict(zip(graph.node_ids, graph.depths.tolist(), strict=True))
    assert depth == {"entity": 0, "alone": 0, "animal": 1, "thing": 1, "pet": 2, "dog": 3}
    assert [len(level) for level in graph.levels()] == [2, 2, 1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_random_graphs_against_walks(seed: int) -> None:
    graph = random_graph(seed)
    above = [walk_up(graph, n) for n in range(len(graph))]
    for node in range(len(graph)):
        assert set(graph.ancestors(node).tolist()) == above[node]
        assert set(graph.descendants(node).tolist()) == {
            n for n in range(len(graph)) if node in above[n]
        }
    position = {int(n): i for i, n in enumerate(graph.topological_order)}
    assert all(position[p] < position[c] for p, c in graph.edges.tolist())
    assert all(graph.depths[p] < graph.depths[c] for p, c in graph.edges.tolist())
    nodes = graph.category_nodes.tolist()
    expected = {
        (a, b)
        for a, node in enumerate(nodes)
        for b, other in enumerate(nodes)
        if node >= 0 and other >= 0 and other in above[node]
    }
    assert set(map(tuple, graph.category_ancestor_pairs.tolist())) == expected


@pytest.mark.parametrize("seed", range(4))
def test_transitive_reduction_keeps_the_order_and_no_detour(seed: int) -> None:
    graph = random_graph(seed)
    reduced = graph.transitive_reduction()
    assert (reduced.ancestor_matrix != graph.ancestor_matrix).nnz == 0
    for parent, child in reduced.edges.tolist():
        others = set(reduced.parents(child).tolist()) - {parent}
        assert not any(parent in walk_up(reduced, other) for other in others)


@pytest.mark.parametrize("seed", range(4))
def test_category_graph_has_the_same_pairs(seed: int) -> None:
    graph = random_graph(seed)
    flat = graph.category_graph()
    assert len(flat) == graph.num_categories == flat.num_categories
    assert np.array_equal(flat.category_ancestor_pairs, graph.category_ancestor_pairs)


def test_category_graph_skips_inner_nodes(graph: CategoryHierarchy) -> None:
    flat = graph.category_graph()
    # dog (0) below animal (1), past "pet"; thing's parent "entity" is no category.
    assert flat.edges.tolist() == [[1, 0]]
    assert flat.category_nodes.tolist() == [0, 1, -1, 3, 4]


@pytest.mark.parametrize("seed", range(4))
def test_contracted_by_walks_that_stop_at_categories(seed: int) -> None:
    graph = random_graph(seed)
    at: dict[int, list[int]] = {}
    for category, node in enumerate(graph.category_nodes.tolist()):
        at.setdefault(node, []).append(category)

    def nearest_above(node: int) -> set[int]:
        found: set[int] = set()
        for parent in graph.parents(node).tolist():
            found |= set(at[parent]) if parent in at else nearest_above(parent)
        return found

    expected = {
        (above, category)
        for category, node in enumerate(graph.category_nodes.tolist())
        if node >= 0
        for above in nearest_above(node)
    }
    flat = graph.contracted()
    assert len(flat) == graph.num_categories == flat.num_categories
    assert set(map(tuple, flat.edges.tolist())) == expected


def test_contracted_keeps_the_short_cut_that_the_category_graph_drops() -> None:
    edges = [("a", "b"), ("b", "c"), ("a", "inner"), ("inner", "c")]
    graph = CategoryHierarchy.from_ids(edges, category_nodes=["a", "b", "c", None])
    assert graph.contracted().edges.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert graph.category_graph().edges.tolist() == [[0, 1], [1, 2]]


def test_level_edges_visit_every_edge_once_children_first() -> None:
    graph = random_graph(7)
    values = np.ones(len(graph))
    for depth in reversed(range(graph.num_levels)):
        parents, children = graph.level_edges(depth)
        np.add.at(values, parents, values[children])

    def paths(node: int) -> float:
        return 1 + sum(paths(int(child)) for child in graph.children(node))

    assert values.tolist() == [paths(node) for node in range(len(graph))]


def test_two_categories_at_one_node_are_unrelated() -> None:
    graph = CategoryHierarchy.from_ids([("top", "x")], category_nodes=["x", "x", "top"])
    assert graph.category_ancestor_pairs.tolist() == [[0, 2], [1, 2]]
    assert len(graph.category_graph()) == 3


def test_no_edges_and_no_nodes() -> None:
    graph = CategoryHierarchy.from_ids([], category_nodes=[None, None])
    assert len(graph) == 0
    assert graph.num_levels == 0
    assert graph.levels() == ()
    assert graph.category_ancestor_pairs.shape == (0, 2)
    assert len(graph.category_graph()) == 2
    assert len(graph.contracted()) == 2


@pytest.mark.parametrize(
    ("edges", "path"),
    [
        ([("a", "b"), ("b", "c"), ("c", "a"), ("r", "a"), ("c", "d")], {"a", "b", "c"}),
        ([("a", "a")], {"a"}),
    ],
)
def test_a_cycle_is_an_error_with_its_path(edges: list[tuple[str, str]], path: set[str]) -> None:
    names = {n: f"name-{n}" for n in "abcdr"}
    with pytest.raises(ValueError, match="cycle") as caught:
        CategoryHierarchy.from_ids(edges, category_nodes=["a"], node_names=names)
    steps = [step.split(" ")[0] for step in str(caught.value).split("cycle: ")[1].split(" -> ")]
    assert steps[0] == steps[-1]
    assert set(steps) == path
    assert all(pair in edges for pair in itertools.pairwise(steps))
    assert "name-a" in str(caught.value)


@pytest.mark.parametrize(
    ("edges", "nodes"), [([("a", "ghost")], ["a"]), ([], ["ghost"]), ([("ghost", "a")], [None])]
)
def test_unknown_ids_are_named(edges: list[tuple[str, str]], nodes: list[str | None]) -> None:
    with pytest.raises(ValueError, match=r"1 node ids .* ghost"):
        CategoryHierarchy.from_ids(edges, category_nodes=nodes, node_names={"a": "A"})


def test_wrong_arrays_are_errors() -> None:
    none = np.zeros((0, 2), dtype=np.int64)
    with pytest.raises(ValueError, match="given twice: a"):
        CategoryHierarchy(("a", "a"), ("x", "y"), none, np.array([0]))
    with pytest.raises(ValueError, match=r"category node positions 3"):
        CategoryHierarchy(("a", "b"), ("x", "y"), none, np.array([3]))
    with pytest.raises(ValueError, match=r"edge node positions -1"):
        CategoryHierarchy(("a", "b"), ("x", "y"), np.array([[-1, 0]]), np.array([0]))
    with pytest.raises(ValueError, match="1 node names for 2"):
        CategoryHierarchy(("a", "b"), ("x",), none, np.array([0]))


def test_unknown_node_look_ups(graph: CategoryHierarchy) -> None:
    with pytest.raises(ValueError, match="'cat'"):
        graph.node_index("cat")
    with pytest.raises(ValueError, match="node 99 is outside"):
        graph.parents(99)


def test_arrays_cannot_be_changed(graph: CategoryHierarchy) -> None:
    with pytest.raises(ValueError, match="read-only"):
        graph.edges[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        graph.category_nodes[0] = 1


def test_a_path_leads_over_the_deepest_parents() -> None:
    edges = [("thing", "shape"), ("shape", "disc"), ("thing", "red"), ("disc", "red disc")]
    edges += [("red", "red disc")]
    graph = CategoryHierarchy.from_ids(edges, category_nodes=["red disc", "thing"])
    for category, expected in ((0, ["thing", "shape", "disc", "red disc"]), (1, ["thing"])):
        path = graph.path_from_root(int(graph.category_nodes[category]))
        assert [graph.node_ids[n] for n in path] == expected
    with pytest.raises(ValueError, match="outside"):
        graph.path_from_root(9)
