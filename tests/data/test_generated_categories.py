# SPDX-License-Identifier: Apache-2.0
"""The compositional vocabulary: uniqueness, tree, held-out compositions, frequencies."""

import numpy as np
import pytest

from vastdet.data.generated import GeneratedSplit, generated_categories
from vastdet.data.generated.categories import COLOURS, PATTERNS, TIERS
from vastdet.data.generated.shapes import SHAPES

EDGES = sorted({10, 11, 24, 50, 1000} | {t.max_categories for t in TIERS})
SIZES = [*EDGES, *(t.max_categories + 1 for t in TIERS[:-1]), 5000, 13_000]


@pytest.mark.parametrize("size", SIZES)
def test_names_and_looks_are_unique(size: int) -> None:
    categories = generated_categories(size)
    assert len(categories) == len(set(categories.names)) == size
    # What is painted: the pattern's colour also when the name leaves it out.
    looks = {(c.shape, c.colour, c.pattern, c.second_colour) for c in categories.compositions}
    assert len(looks) == size
    assert all(c.second_colour != c.colour for c in categories.compositions)
    synonyms = [s for c in categories.compositions for s in c.synonyms]
    assert len(set(synonyms) | set(categories.names)) == len(synonyms) + size


@pytest.mark.parametrize("size", SIZES)
def test_attribute_values_are_balanced(size: int) -> None:
    for attribute in ("shape", "colour", "pattern"):
        values = [getattr(c, attribute) for c in generated_categories(size).compositions]
        counts = [values.count(value) for value in set(values)]
        if attribute == "pattern" and size > 1200:
            continue  # a plain fill has no second colour, so it has fewer compositions
        assert max(counts) <= 2 * min(counts) + 2


@pytest.mark.parametrize("size", SIZES)
def test_held_out_compositions_have_seen_attributes(size: int) -> None:
    categories = generated_categories(size)
    novel = [c for c, held in zip(categories.compositions, categories.novel, strict=True) if held]
    base = [
        c for c, held in zip(categories.compositions, categories.novel, strict=True) if not held
    ]
    assert 0.1 * size <= len(novel) <= 0.2 * size
    assert not set(novel) & set(base)
    for position in range(4):
        assert {c[position] for c in novel} <= {c[position] for c in base}


@pytest.mark.parametrize("size", [10, 24, 1000, 20_000])
def test_tree_is_a_graph_of_four_levels(size: int) -> None:
    categories = generated_categories(size)
    space = GeneratedSplit.default(size, "open_val").category_space()
    assert space.names == categories.names
    assert space.novel == categories.novel
    assert space.hierarchy is not None
    assert space.hierarchy.num_levels == 4
    assert len(space.hierarchy.roots) == 1
    tree = categories.tree()
    for key in list(tree["categoryid2treeid"].values())[:50]:
        above, frontier = set(), [key]
        while frontier:  # brute force up the direct relations
            parents = tree["child2father"].get(frontier.pop(), [])
            frontier.extend(parents)
            above.update(parents)
        assert set(tree["descendant2ancestor"][key]) == above
        assert all(key in tree["ancestor2descendant"][ancestor] for ancestor in above)
        assert len(tree["child2father"][key]) == 2


def test_tree_has_the_keys_of_the_v3det_file(shared_data) -> None:
    import json

    path = shared_data / "v3det_meta" / "v3det_category_tree_from_wordnet.json"
    official = set(json.loads(path.read_text("utf-8"))) - {"note"}
    assert set(generated_categories(24).tree()) == official


def test_probabilities_follow_zipfs_law() -> None:
    categories = generated_categories(100)
    chances = np.sort(categories.probabilities(1.0))[::-1]
    np.testing.assert_allclose(chances[0] / chances, np.arange(1, 101))
    assert chances.sum() == pytest.approx(1)
    np.testing.assert_allclose(categories.probabilities(0.0), 0.01)
    base = categories.probabilities(1.0, base_only=True)
    assert base.sum() == pytest.approx(1)
    assert not base[categories.novel_mask].any()
    assert base[~categories.novel_mask].all()


def test_frequency_groups_cover_a_large_vocabulary() -> None:
    groups = GeneratedSplit.default(13_000, "train").frequency_groups()
    assert set(groups) == {"r", "c", "f"}
    assert groups == GeneratedSplit.default(13_000, "val").frequency_groups()


@pytest.mark.parametrize("size", [-1, 0, 9, 20_001])
def test_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="expected 10 to 20,000"):
        generated_categories(size)
    with pytest.raises(ValueError, match="expected 10 to 20,000"):
        GeneratedSplit.default(size, "train")


@pytest.mark.parametrize("exponent", [-0.1, float("nan"), float("inf")])
def test_exponent_out_of_range_is_refused(exponent: float) -> None:
    with pytest.raises(ValueError, match="long-tail exponent"):
        generated_categories(10).probabilities(exponent)


def test_names_read_well() -> None:
    assert "orange heart with a green middle band" in generated_categories(20_000).names
    assert generated_categories(24).names[0] == "red plain circle"
    assert not any(" a orange" in name for name in generated_categories(20_000).names)


def test_attributes_have_no_twins() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) == TIERS[-1].shapes
    assert len(COLOURS) == TIERS[-1].colours
    assert len(PATTERNS) == TIERS[-1].patterns
    rgb = np.array(list(COLOURS.values()), float)
    distance = np.linalg.norm(rgb[:, None] - rgb[None], axis=2)
    assert distance[~np.eye(len(rgb), dtype=bool)].min() > 60
