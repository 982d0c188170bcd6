# SPDX-License-Identifier: Apache-2.0
"""Generated scenes whose categories are of two levels: shapes with a known fill, and shapes.

V3Det has categories above other categories; in the plain generated sets all are leaves. Here some
compositions have no category of their own: such an object is labelled by its shape alone. So
"circle" is a category above "red plain circle", and a circle in a fill of its own category is never
labelled "circle". Objects are larger than in the plain sets.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from vastdet.data.generated.categories import TIERS, generated_categories
from vastdet.data.generated.splits import GeneratedSplit
from vastdet.data.register import LazyMetadata
from vastdet.vocabulary import CategorySpace, frequency_groups

# Of the compositions, how many have no category of their own.
HIDDEN_SHARE = 0.15
# Pixels: a thousand categories differ by patterns that smaller objects do not show.
MIN_SIZE = 24.0
REGISTERED_KINDS = (50, 1_000, 5_000, 13_000)
MIN_KINDS = 50
MAX_KINDS = 13_000


@dataclass(frozen=True)
class KindsSplit:
    """A generated set of K categories, the last S of which are the shapes.

    Attributes:
        num_categories: K, 50 to 13,000.
        split: "train" or "val".
    """

    num_categories: int
    split: str

    def __post_init__(self) -> None:
        if not MIN_KINDS <= self.num_categories <= MAX_KINDS or self.split not in ("train", "val"):
            raise ValueError(
                f"got {self.num_categories} categories and the split {self.split!r}; expected "
                f"{MIN_KINDS} to {MAX_KINDS:,} and 'train' or 'val'"
            )

    @property
    def scenes(self) -> GeneratedSplit:
        """The scenes, whose categories are the compositions, hidden ones last."""
        return _scenes(self.sizes[0], self.split)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many compositions there are, and how many of them have a category."""
        return _sizes(self.num_categories)

    @property
    def labels(self) -> np.ndarray:
        """The category of each composition: int64, its own position or that of its shape."""
        num_all, num_own = self.sizes
        # Compositions take turns through the shapes.
        num_shapes = self.num_categories - num_own
        index = np.arange(num_all)
        return np.where(index < num_own, index, num_own + index % num_shapes)

    def records(self) -> list[dict[str, Any]]:
        """As `GeneratedSplit.records`, with the categories of this set."""
        labels = self.labels
        records = self.scenes.records()
        for record in records:
            for annotation in record["annotations"]:
                annotation["category_id"] = int(labels[annotation["category_id"]])
        return records

    def category_space(self) -> CategorySpace:
        """The vocabulary with frequency groups and tree; dataset ids are 1..K."""
        num_all, num_own = self.sizes
        scenes = _scenes(num_all, "train")
        categories = generated_categories(num_all)
        entries = scenes.category_dicts()[:num_own]
        shapes = [c.shape for c in categories.compositions[: self.num_categories - num_own]]
        entries += [
            {"id": num_own + 1 + i, "name": shape, "synonyms": [shape], "novel": False}
            for i, shape in enumerate(shapes)
        ]
        chances = np.bincount(
            self.labels, categories.probabilities(scenes.config.long_tail), self.num_categories
        )
        draws = (scenes.config.min_objects + scenes.config.max_objects) / 2
        groups = frequency_groups(scenes.num_images * (1 - (1 - chances) ** draws))
        entries = [{**x, "frequency": g} for x, g in zip(entries, groups, strict=True)]
        return CategorySpace.from_v3det(entries, category_tree=self.tree(shapes))

    def tree(self, shapes: list[str]) -> dict[str, Any]:
        """V3Det's tree file: that of the compositions, in which shapes are categories too."""
        num_all, num_own = self.sizes
        tree = generated_categories(num_all).tree()
        nodes = {str(i + 1): tree["categoryid2treeid"][str(i + 1)] for i in range(num_own)}
        hidden = {tree["categoryid2treeid"][str(i + 1)] for i in range(num_own, num_all)}
        nodes |= {
            str(num_own + 1 + i): f"g_shape_{shape.replace(' ', '_')}"
            for i, shape in enumerate(shapes)
        }
        return {
            "categoryid2treeid": nodes,
            **{key: _without(tree[key], hidden) for key in ("id2name", "id2desc")},
            **{
                key: {
                    node: [other for other in others if other not in hidden]
                    for node, others in _without(tree[key], hidden).items()
                }
                for key in (
                    "father2child",
                    "child2father",
                    "ancestor2descendant",
                    "descendant2ancestor",
                )
            },
        }


def _scenes(num_compositions: int, split: str) -> GeneratedSplit:
    default = GeneratedSplit.default(num_compositions, split)
    return replace(default, config=replace(default.config, min_size=MIN_SIZE))


@functools.cache
def _sizes(num_categories: int) -> tuple[int, int]:
    """See `KindsSplit.sizes`; the number of shapes depends on that of the compositions."""
    for tier in TIERS:
        num_own = num_categories - tier.shapes
        num_all = max(math.ceil(num_own / (1 - HIDDEN_SHARE)), num_own + tier.shapes)
        if num_all <= tier.max_categories:
            return num_all, num_own
    raise AssertionError(num_categories)


def _without(mapping: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def register_kinds(name: str, split: KindsSplit) -> None:
    """Register a set under a name; nothing is laid out before it is asked for."""
    DatasetCatalog.register(name, split.records)
    MetadataCatalog[name] = LazyMetadata(
        name=name, evaluator_type="coco", read_space=split.category_space
    )


def register_all_kinds() -> None:
    """Register `generated_kinds_<K>_<split>` for K in `REGISTERED_KINDS`."""
    for num_categories in REGISTERED_KINDS:
        for split in ("train", "val"):
            register_kinds(
                f"generated_kinds_{num_categories}_{split}", KindsSplit(num_categories, split)
            )
