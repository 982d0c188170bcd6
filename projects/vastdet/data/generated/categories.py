# SPDX-License-Identifier: Apache-2.0
"""The compositional vocabulary of the generated dataset: 10 to 20,000 categories.

A category is a composition (shape, colour, pattern, pattern colour). Small vocabularies draw on
few values of each attribute, so that a small network can learn them; large ones use all of them,
and the colour of the pattern becomes an attribute of its own. K below is the vocabulary size.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vastdet.data.generated.shapes import SHAPES, Shape

MIN_CATEGORIES = 10
MAX_CATEGORIES = 20_000
NOVEL_FRACTION = 0.2

# Eleven basic colour terms but grey (Berlin and Kay, Basic Color Terms, 1969), cyan added: RGB.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 35, 38),
    "blue": (38, 74, 214),
    "yellow": (248, 222, 40),
    "green": (34, 160, 62),
    "white": (244, 244, 240),
    "purple": (138, 46, 178),
    "orange": (250, 132, 20),
    "cyan": (70, 214, 224),
    "black": (22, 22, 26),
    "pink": (250, 150, 192),
    "brown": (118, 68, 32),
}
# Pattern -> (adjective, noun phrase that follows "with {colour}").
PATTERNS: dict[str, tuple[str, str]] = {
    "plain": ("plain", ""),
    "striped": ("striped", "stripes"),
    "dotted": ("dotted", "dots"),
    "bordered": ("bordered", "border"),
    "halved": ("half-dipped", "lower half"),
    "banded": ("banded", "middle band"),
    "gridded": ("gridded", "grid lines"),
    "zigzag": ("zigzag", "zigzag lines"),
}
_SINGULAR_PATTERNS = ("bordered", "halved", "banded")


class Tier(NamedTuple):
    """How many values of each attribute a vocabulary of at most `max_categories` draws on."""

    max_categories: int
    shapes: int
    colours: int
    patterns: int
    pattern_colours: bool


TIERS = (
    Tier(12, 4, 4, 2, False),
    Tier(32, 6, 6, 3, False),
    Tier(128, 10, 8, 5, False),
    Tier(1_200, 20, 10, 8, False),
    Tier(14_000, 24, 10, 8, True),
    Tier(MAX_CATEGORIES, 27, 11, 8, True),
)


class Composition(NamedTuple):
    """The attribute values of one category; `pattern_colour` is None when it follows `colour`."""

    shape: str
    colour: str
    pattern: str
    pattern_colour: str | None

    @property
    def name(self) -> str:
        """A phrase that a text encoder can read, such as "red star with blue stripes"."""
        return self.phrase(self.shape)

    def phrase(self, shape_word: str) -> str:
        """The name with another word, such as the plural, for the shape."""
        adjective, noun = PATTERNS[self.pattern]
        if self.pattern_colour is None:
            return f"{self.colour} {adjective} {shape_word}"
        colour = self.pattern_colour
        if self.pattern in _SINGULAR_PATTERNS:
            colour = with_article(colour)
        return f"{self.colour} {shape_word} with {colour} {noun}"

    @property
    def second_colour(self) -> str | None:
        """The colour of the pattern: black or white, whichever contrasts, when it is not named."""
        if self.pattern == "plain" or self.pattern_colour is not None:
            return self.pattern_colour
        luminance = np.dot(COLOURS[self.colour], (0.299, 0.587, 0.114))  # ITU-R BT.601
        return "black" if luminance > 150 else "white"

    @property
    def synonyms(self) -> tuple[str, ...]:
        """Other phrases for the same category, at least one."""
        adjective, _ = PATTERNS[self.pattern]
        second = "" if self.pattern_colour is None else f" in {self.pattern_colour}"
        return tuple(
            f"{adjective} {self.colour} {other}{second}" for other in _shape(self.shape).synonyms
        )

    @property
    def description(self) -> str:
        """One sentence that defines the category."""
        _, noun = PATTERNS[self.pattern]
        family = _shape(self.shape).family
        surface = f"with {self.pattern_colour or 'contrasting'} {noun}" if noun else "no pattern"
        kind = with_article(family).capitalize()
        return f"{kind}: {self.shape} outline, {self.colour} fill, {surface}."


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


@functools.cache
def _shape(name: str) -> Shape:
    return next(shape for shape in SHAPES if shape.name == name)


def check_num_categories(num_categories: int) -> None:
    """Raise ValueError unless a vocabulary of this size can be composed."""
    if not MIN_CATEGORIES <= num_categories <= MAX_CATEGORIES:
        raise ValueError(
            f"got {num_categories} generated categories; "
            f"expected {MIN_CATEGORIES} to {MAX_CATEGORIES:,}: choose a number in that range"
        )


def _tier(num_categories: int) -> Tier:
    check_num_categories(num_categories)
    return next(tier for tier in TIERS if num_categories <= tier.max_categories)


def _fills(tier: Tier, colours: list[str]) -> list[tuple[str, str, str | None]]:
    """Every (colour, pattern, pattern colour) of a tier."""
    patterns = list(PATTERNS)[: tier.patterns]
    fills: list[tuple[str, str, str | None]] = []
    for colour in colours:
        for pattern in patterns:
            if pattern == "plain" or not tier.pattern_colours:
                fills.append((colour, pattern, None))
            else:
                fills.extend((colour, pattern, c) for c in colours if c != colour)
    return fills


def _coprime(start: int, size: int) -> int:
    """The first number from `start` on that shares no factor with `size`."""
    return next(number for number in range(start, start + size) if math.gcd(number, size) == 1)


def _compositions(num_categories: int) -> tuple[Composition, ...]:
    tier = _tier(num_categories)
    shapes = [shape.name for shape in SHAPES[: tier.shapes]]
    fills = _fills(tier, list(COLOURS)[: tier.colours])
    chosen = []
    # Row r takes one fill a shape. Steps without a common factor with the number of fills, down
    # (near the golden section) as across, spread the values of all attributes evenly, and no
    # composition repeats within a shape.
    down = _coprime(round(len(fills) * (math.sqrt(5) - 1) / 2), len(fills))
    across = _coprime(2 * down + 1, len(fills))
    for index in range(num_categories):
        row, column = divmod(index, len(shapes))
        fill = fills[(row * down + column * across) % len(fills)]
        chosen.append(Composition(shapes[column], *fill))
    return tuple(chosen)


def _novel(compositions: tuple[Composition, ...]) -> tuple[bool, ...]:
    """Mark the held-out compositions: each of their attribute values stays in some base one."""
    remaining: Counter[tuple[str, str | None]] = Counter()
    for composition in compositions:
        remaining.update(composition._asdict().items())
    wanted = int(NOVEL_FRACTION * len(compositions))
    novel = [False] * len(compositions)
    for index in np.random.default_rng(len(compositions)).permutation(len(compositions)):
        values = compositions[index]._asdict().items()
        if wanted and all(remaining[value] > 1 for value in values):
            remaining.subtract(values)
            novel[index] = True
            wanted -= 1
    return tuple(novel)


# Compared and hashed by identity: it is a cache key of every scene.
@dataclass(frozen=True, eq=False)
class GeneratedCategories:
    """K compositions with names, a category tree and held-out (novel) flags.

    Contiguous ids are positions 0..K-1, dataset ids are 1..K. The tree has four levels and is a
    directed acyclic graph: root "thing" -> shape family -> shape -> category, and root ->
    colour ("red thing") -> category. Use `generated_categories(K)`, which caches.
    """

    compositions: tuple[Composition, ...]
    novel: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.compositions)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Unique names in the order of the contiguous ids."""
        return tuple(composition.name for composition in self.compositions)

    @functools.cached_property
    def novel_mask(self) -> np.ndarray:
        """Bool array K: True where the composition is held out."""
        return np.array(self.novel)

    def dicts(self) -> list[dict[str, Any]]:
        """The categories with the fields that readers of COCO, LVIS and V3Det files ask for."""
        return [
            {
                "id": index + 1,
                "name": composition.name,
                "supercategory": composition.shape,
                "synonyms": [composition.name, *composition.synonyms],
                "def": composition.description,
                "cat_info": composition.description,
                "novel": self.novel[index],
            }
            for index, composition in enumerate(self.compositions)
        ]

    def probabilities(self, exponent: float, *, base_only: bool = False) -> np.ndarray:
        """The chance of each category at one draw: Zipf's law, rank^-exponent, shuffled ranks.

        Args:
            exponent: 0 draws uniformly; 1 is Zipf's law proper.
            base_only: give held-out compositions no chance and scale the others up.

        Returns:
            Float64 array K that sums to 1.
        """
        if not (math.isfinite(exponent) and exponent >= 0):
            raise ValueError(
                f"got a long-tail exponent of {exponent}; expected a finite number >= 0 "
                "(0 is uniform, 1 is Zipf's law)"
            )
        ranks = np.random.default_rng(len(self) + 1).permutation(len(self)) + 1
        weights = ranks.astype(np.float64) ** -exponent
        if base_only:
            weights[self.novel_mask] = 0
        return weights / weights.sum()

    def tree(self) -> dict[str, Any]:
        """The category tree with the keys of V3Det's tree file (arXiv 2304.03752, section 3.1).

        Returns:
            categoryid2treeid (dataset id -> node), id2name, id2desc, father2child, child2father,
            ancestor2descendant and descendant2ancestor, all with string keys.
        """
        return _tree(self.compositions)


def _tree(compositions: tuple[Composition, ...]) -> dict[str, Any]:
    root = "g_thing"
    id2name, parents = {root: "thing"}, {}
    id2desc = {root: "Any shape of the generated dataset."}

    def node(kind: str, name: str, description: str, parent: str) -> str:
        key = f"g_{kind}_{name.replace(' ', '_')}"
        if key not in id2name:
            id2name[key], id2desc[key], parents[key] = name, description, [parent]
        return key

    category_nodes = {}
    for index, composition in enumerate(compositions):
        shape = _shape(composition.shape)
        family = node("family", shape.family, f"Any {shape.family}.", root)
        outline = node("shape", shape.name, f"Any {shape.name}, whatever its fill.", family)
        tint = f"{composition.colour} thing"
        colour = node("colour", tint, f"Anything filled in {composition.colour}.", root)
        key = f"g{index + 1:08d}"
        id2name[key], id2desc[key] = composition.name, composition.description
        parents[key] = [outline, colour]
        category_nodes[str(index + 1)] = key

    children: dict[str, list[str]] = {}
    ancestors: dict[str, list[str]] = {}
    descendants: dict[str, list[str]] = {}
    # A node is always entered after its parents, so one pass in order of entry is enough.
    for child, fathers in parents.items():
        above: dict[str, None] = {}
        for father in fathers:
            children.setdefault(father, []).append(child)
            above.update(dict.fromkeys([*ancestors.get(father, []), father]))
        ancestors[child] = list(above)
        for ancestor in above:
            descendants.setdefault(ancestor, []).append(child)
    return {
        "categoryid2treeid": category_nodes,
        "id2name": id2name,
        "id2desc": id2desc,
        "father2child": children,
        "child2father": parents,
        "ancestor2descendant": descendants,
        "descendant2ancestor": ancestors,
    }


@functools.lru_cache(maxsize=32)
def generated_categories(num_categories: int) -> GeneratedCategories:
    """The vocabulary of K categories; raises ValueError outside 10 to 20,000."""
    compositions = _compositions(num_categories)
    return GeneratedCategories(compositions, _novel(compositions))
