# SPDX-License-Identifier: Apache-2.0
"""Captions and referring expressions, checked by brute force over the scenes."""

import re

import numpy as np
import pytest

from vastdet.data.generated import GeneratedSplit, SceneConfig, SceneObject, generated_categories
from vastdet.data.generated.categories import PATTERNS
from vastdet.data.generated.language import caption, referring_expressions
from vastdet.data.generated.shapes import SHAPES

ADJECTIVES = {words[0]: pattern for pattern, words in PATTERNS.items()}
RELATION = re.compile(r"^the (.+?) (left of|right of|above|below) (the .+)$")
RANKS = ("leftmost", "rightmost", "topmost", "bottom", "largest", "smallest")


def _objects(*parts: tuple[int, tuple[int, int, int, int]]) -> list[SceneObject]:
    transform = np.zeros((2, 3))
    return [
        SceneObject(category, box, (box[2] - box[0]) * (box[3] - box[1]), 1.0, transform)
        for category, box in parts
    ]


def _size(box: tuple[int, int, int, int]) -> float:
    return max(box[2] - box[0], box[3] - box[1]) / 160


def _centre(box: tuple[int, int, int, int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 320, (box[1] + box[3]) / 320


def _matching(words: str, objects, compositions) -> list[int]:
    """The objects that a bare phrase such as "large red dotted star" describes, word by word."""
    shape = next(
        s.name for s in sorted(SHAPES, key=lambda s: -len(s.name)) if words.endswith(s.name)
    )
    rest = words[: -len(shape)].split()
    found = []
    for index, item in enumerate(objects):
        composition = compositions[item.category]
        fits = composition.shape == shape
        for word in rest:
            if word == "small":
                fits &= _size(item.box) <= 0.14
            elif word == "large":
                fits &= _size(item.box) >= 0.34
            elif word in ADJECTIVES:
                fits &= composition.pattern == ADJECTIVES[word]
            else:
                fits &= composition.colour == word
        if fits:
            found.append(index)
    return found


def _meaning(text: str, objects, compositions) -> list[int]:
    """Every object that an expression is true of; the words are read with no margin."""
    relation = RELATION.match(text)
    if relation:
        own, word, other = relation.groups()
        anchors = _meaning(other, objects, compositions)
        assert len(anchors) == 1, text
        x, y = _centre(objects[anchors[0]].box)
        true = {
            "left of": lambda c: c[0] < x,
            "right of": lambda c: c[0] > x,
            "above": lambda c: c[1] < y,
            "below": lambda c: c[1] > y,
        }[word]
        return [i for i in _matching(own, objects, compositions) if true(_centre(objects[i].box))]
    words = text.removeprefix("the ")
    rank = next((r for r in RANKS if words.startswith(r + " ")), None)
    if rank is None:
        return _matching(words, objects, compositions)
    matching = _matching(words.removeprefix(rank + " "), objects, compositions)

    def area(box) -> int:
        return (box[2] - box[0]) * (box[3] - box[1])

    value = {
        "leftmost": lambda box: -_centre(box)[0],
        "rightmost": lambda box: _centre(box)[0],
        "topmost": lambda box: -_centre(box)[1],
        "bottom": lambda box: _centre(box)[1],
        "largest": area,
        "smallest": lambda box: -area(box),
    }[rank]
    best = max(value(objects[i].box) for i in matching)
    return [i for i in matching if value(objects[i].box) == best]


@pytest.mark.parametrize("size", [10, 24, 1000, 20_000])
def test_expressions_are_true_of_one_object_only(size: int) -> None:
    split = GeneratedSplit.default(size, "val")
    compositions = split.categories.compositions
    kinds: set[str | None] = set()
    for index in range(60):
        objects = split.layout(index).objects
        rng = split.labelling_rngs(index)[0]
        for found in referring_expressions(split.config, split.categories, objects, rng):
            assert _meaning(found.text, objects, compositions) == [found.target], found.text
            kinds.add(found.qualifier)
    assert {None, "left of", "below", "leftmost", "largest"} <= kinds


def test_twins_get_no_expression_by_attributes() -> None:
    objects = _objects((0, (10, 10, 40, 40)), (0, (11, 50, 41, 80)))
    found = referring_expressions(
        SceneConfig(), generated_categories(24), objects, np.random.default_rng(0)
    )
    assert [e.qualifier for e in found if e.target == 0] == ["topmost"]
    assert [e.qualifier for e in found if e.target == 1] == ["bottom"]


def test_a_pattern_colour_may_be_meant_too() -> None:
    # A white-dotted circle beside a white plain one: "the white circle" would be doubtful.
    categories = generated_categories(20_000)
    names = categories.names
    dotted = next(i for i, n in enumerate(names) if n.endswith("circle with white dots"))
    white = next(i for i, n in enumerate(names) if n.startswith("white circle with"))
    objects = _objects((dotted, (10, 10, 60, 60)), (white, (100, 10, 150, 60)))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        texts = [e.text for e in referring_expressions(SceneConfig(), categories, objects, rng)]
        assert texts
        assert "the white circle" not in texts


def test_caption_names_every_object_once() -> None:
    split = GeneratedSplit.default(24, "val")
    for index in range(30):
        objects = split.layout(index).objects
        sentence = caption(split.categories, objects)
        mentioned = [i for phrase in sentence.phrases for i in phrase.objects]
        assert sorted(mentioned) == list(range(len(objects)))
        for phrase in sentence.phrases:
            words = sentence.text[phrase.start : phrase.stop]
            composition = split.categories.compositions[phrase.category]
            assert composition.colour in words
            assert words.startswith(("a ", "an ")) == (len(phrase.objects) == 1)
            assert {objects[i].category for i in phrase.objects} == {phrase.category}


def test_caption_of_an_empty_scene() -> None:
    categories = generated_categories(24)
    assert caption(categories, []).text == "An empty scene."
    assert referring_expressions(SceneConfig(), categories, [], np.random.default_rng(0)) == []


def test_caption_counts_in_words_and_plurals() -> None:
    categories = generated_categories(24)
    cross = categories.names.index("red dotted cross")
    objects = _objects(*[(cross, (i, 0, i + 20, 20)) for i in range(12)])
    assert caption(categories, objects).text == "A scene with 12 red dotted crosses."
    assert caption(categories, objects[:3]).text == "A scene with three red dotted crosses."
