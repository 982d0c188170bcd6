# SPDX-License-Identifier: Apache-2.0
"""Captions and referring expressions of generated scenes.

A referring expression must be true of its object and of no other, also to a reader who is
generous: the object itself has to match strictly (small is clearly small, left is clearly left),
every other one has to fail a looser reading of the same words. Boxes are XYXY absolute pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vastdet.data.generated.categories import (
    PATTERNS,
    Composition,
    GeneratedCategories,
    with_article,
)
from vastdet.data.generated.scene import SceneConfig, SceneObject

# Longer box side over the shorter image side: (strictly, loosely) below and above.
SMALL, LARGE = (0.14, 0.2), (0.34, 0.27)
# Distance of box centres over the image side, along the axis of the relation.
CLEAR_DISTANCE = 0.08
# Ratio of box areas for the largest or smallest of a kind.
CLEAR_RATIO = 1.4
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PLURALS = {"fish": "fish", "leaf": "leaves"}
# Which attributes a description may name, from the shortest.
_FORMS = (
    ("shape",),
    ("colour", "shape"),
    ("pattern", "shape"),
    ("size", "shape"),
    ("size", "colour", "shape"),
    ("colour", "pattern", "shape"),
    ("size", "colour", "pattern", "shape"),
)
# Relation -> (axis, sign): the sign of target minus anchor along that axis (x right, y down).
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
_EXTREMES = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "bottom": (1, 1)}


class Phrase(NamedTuple):
    """A phrase of a caption: characters [start, stop) and the objects that it speaks of."""

    start: int
    stop: int
    category: int
    objects: tuple[int, ...]


class Caption(NamedTuple):
    """A sentence about a scene that mentions every annotated object once."""

    text: str
    phrases: tuple[Phrase, ...]


class Description(NamedTuple):
    """Attribute values that an expression names; None where it does not."""

    size: str | None = None
    colour: str | None = None
    pattern: str | None = None
    shape: str | None = None

    @property
    def text(self) -> str:
        """The words, such as "large blue dotted star"."""
        pattern = None if self.pattern is None else PATTERNS[self.pattern][0]
        return " ".join(word for word in (self.size, self.colour, pattern, self.shape) if word)


class ReferringExpression(NamedTuple):
    """A phrase that picks out one object of a scene.

    Attributes:
        text: such as "the large blue star left of the dotted ring".
        target: position of the object in the scene's objects.
        description: what the phrase says of the target itself.
        qualifier: a key of `RELATIONS`, an extreme such as "leftmost" or "largest", or None.
        anchor: position of the object that the relation refers to, or None.
        anchor_description: what the phrase says of the anchor, or None.
    """

    text: str
    target: int
    description: Description
    qualifier: str | None = None
    anchor: int | None = None
    anchor_description: Description | None = None


def _plural(shape: str) -> str:
    if shape in _PLURALS:
        return _PLURALS[shape]
    return shape + ("es" if shape.endswith(("s", "x", "sh", "ch")) else "s")


def caption(categories: GeneratedCategories, objects: Sequence[SceneObject]) -> Caption:
    """Say what is in a scene, one phrase a category, in the order of the boxes from the left."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(objects)), key=lambda i: objects[i].box):
        groups[objects[index].category].append(index)
    if not groups:
        return Caption("An empty scene.", ())
    text, phrases = "A scene with ", []
    for position, (category, members) in enumerate(groups.items()):
        if position:
            text += " and " if position == len(groups) - 1 else ", "
        composition = categories.compositions[category]
        words = with_article(composition.name)
        if len(members) > 1:
            count = _NUMBERS[len(members)] if len(members) < len(_NUMBERS) else str(len(members))
            words = f"{count} {composition.phrase(_plural(composition.shape))}"
        phrases.append(Phrase(len(text), len(text) + len(words), category, tuple(members)))
        text += words
    return Caption(text + ".", tuple(phrases))


class _Reader:
    """Decides which objects of one scene a description fits, strictly or loosely."""

    def __init__(
        self, config: SceneConfig, categories: GeneratedCategories, objects: Sequence[SceneObject]
    ) -> None:
        boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
        self.compositions = [categories.compositions[item.category] for item in objects]
        extents = boxes[:, 2:] - boxes[:, :2]
        self.sizes = extents.max(axis=1) / min(config.height, config.width)
        self.areas = extents.prod(axis=1)
        self.centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / [config.width, config.height]

    def size_word(self, index: int) -> str | None:
        """The size of an object in a word, or None when it is neither clearly."""
        if self.sizes[index] <= SMALL[0]:
            return "small"
        return "large" if self.sizes[index] >= LARGE[0] else None

    def fits_loosely(self, description: Description, index: int) -> bool:
        """Whether a generous reader might take the object for one so described."""
        composition: Composition = self.compositions[index]
        size = self.sizes[index]
        if description.size == "small" and size > SMALL[1]:
            return False
        if description.size == "large" and size < LARGE[1]:
            return False
        colours = (None, composition.colour, composition.second_colour)
        return (
            description.colour in colours
            and description.pattern in (None, composition.pattern)
            and description.shape in (None, composition.shape)
        )

    def descriptions(self, index: int) -> list[Description]:
        """Every description that fits the object strictly, the shortest first."""
        values = {"size": self.size_word(index), **self.compositions[index]._asdict()}
        return [
            Description(**{name: values[name] for name in form})
            for form in _FORMS
            if all(values[name] for name in form)
        ]

    def candidates(self, description: Description) -> list[int]:
        """The objects that a description may be taken to mean."""
        every = range(len(self.compositions))
        return [index for index in every if self.fits_loosely(description, index)]


def referring_expressions(
    config: SceneConfig,
    categories: GeneratedCategories,
    objects: Sequence[SceneObject],
    rng: np.random.Generator,
) -> list[ReferringExpression]:
    """Expressions that each mean one object of a scene, at most three kinds an object.

    Kinds are by attributes ("the small red star"), by rank ("the leftmost star", "the largest blue
    circle") and by relation ("the star left of the dotted ring"). An object that no such phrase
    singles out gets none.
    """
    reader = _Reader(config, categories, objects)
    plain: dict[int, ReferringExpression] = {}
    for index in range(len(objects)):
        unique = [d for d in reader.descriptions(index) if reader.candidates(d) == [index]]
        if unique:
            chosen = unique[int(rng.integers(min(len(unique), 3)))]
            plain[index] = ReferringExpression(f"the {chosen.text}", index, chosen)
    expressions: list[ReferringExpression] = []
    for index in range(len(objects)):
        found = [plain.get(index), _by_rank(reader, index, rng)]
        found.append(_by_relation(reader, index, plain, rng))
        expressions.extend(expression for expression in found if expression is not None)
    return expressions


def _shuffled(items: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [items[i] for i in rng.permutation(len(items))]


def _by_rank(reader: _Reader, target: int, rng: np.random.Generator) -> ReferringExpression | None:
    """The extreme one of several objects of a kind, or None."""
    kinds = [d for d in reader.descriptions(target) if d.size is None]
    for description in kinds:
        others = [i for i in reader.candidates(description) if i != target]
        if not others:
            continue
        for word in _shuffled([*_EXTREMES, "largest", "smallest"], rng):
            if all(_is_beyond(reader, word, target, other) for other in others):
                text = f"the {word} {description.text}"
                return ReferringExpression(text, target, description, word)
    return None


def _is_beyond(reader: _Reader, word: str, target: int, other: int) -> bool:
    if word in _EXTREMES:
        axis, sign = _EXTREMES[word]
        distance = reader.centres[target, axis] - reader.centres[other, axis]
        return bool(sign * distance >= CLEAR_DISTANCE)
    ratio = reader.areas[target] / reader.areas[other]
    return bool(ratio >= CLEAR_RATIO if word == "largest" else 1 / ratio >= CLEAR_RATIO)


def _by_relation(
    reader: _Reader,
    target: int,
    plain: dict[int, ReferringExpression],
    rng: np.random.Generator,
) -> ReferringExpression | None:
    """One of several objects of a kind, by where it lies from an object that needs no relation."""
    anchors = [plain[i] for i in rng.permutation(len(reader.compositions)).tolist() if i in plain]
    for description in reader.descriptions(target):
        candidates = reader.candidates(description)
        if candidates == [target]:
            continue
        for anchor in anchors:
            if anchor.target in candidates:
                continue
            offsets = reader.centres[candidates] - reader.centres[anchor.target]
            for relation in _shuffled(list(RELATIONS), rng):
                axis, sign = RELATIONS[relation]
                along = dict(zip(candidates, sign * offsets[:, axis], strict=True))
                own = along.pop(target)
                if own >= CLEAR_DISTANCE and all(value <= 0 for value in along.values()):
                    text = f"the {description.text} {relation} {anchor.text}"
                    return ReferringExpression(
                        text, target, description, relation, anchor.target, anchor.description
                    )
    return None
