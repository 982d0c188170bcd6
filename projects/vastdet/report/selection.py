# SPDX-License-Identifier: Apache-2.0
"""What a detector selected for each picture, beside what is labelled there.

S selected categories an image, best first; a rank counts from 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vastdet.evaluation.metrics import FREQUENCY_NAMES
from vastdet.evaluation.selected import read_selection
from vastdet.vocabulary import CategorySpace
from vastdet.vocabulary.hierarchy import NO_NODE

PRESENT, ABOVE, ABSENT = "present", "above", "absent"
MAX_SHOWN = 12
ALL = "all categories"


@dataclass(frozen=True)
class ShownCategory:
    """A selected category.

    `path` leads from the root of the category tree to the category itself; without a tree it is the
    category alone. `state` tells whether it is labelled in the picture ("present"), lies above one
    that is ("above"), or neither ("absent"). `score` is NaN where the model gave none.
    """

    path: tuple[str, ...]
    score: float
    state: str


@dataclass(frozen=True)
class PictureSelection:
    """The best selected categories of one picture, and how the labelled ones fared.

    `further` has the labelled categories that are not shown, each with its rank, None where it was
    not selected.
    """

    shown: list[ShownCategory]
    further: list[tuple[str, int | None]]
    num_selected: int
    num_labelled: int
    num_found: int


@dataclass(frozen=True)
class RecallCurve:
    """AR^C in percent, of the 1 to S best selected categories, by group of categories."""

    num_categories: int
    num_selected: int
    values: dict[str, list[float]]


class Selections:
    """Joins the selections of a dataset with its labels, image by image."""

    def __init__(self, file: Path, space: CategorySpace) -> None:
        """Read `selected_categories.npz`.

        Raises:
            ValueError: the file is damaged, or of another dataset's categories.
        """
        content = read_selection(file)
        self.space = space
        self.num_selected = content.num_selected
        self._rows = {
            image_id: (row[row >= 0], scores[row >= 0])
            for image_id, row, scores in zip(
                content.images.tolist(), content.categories, content.scores, strict=True
            )
        }
        # Ranks of the labels of each image that has any, by group.
        self._ranks: dict[str, list[np.ndarray]] = {}

    def add(self, image_id: Any, labels: Sequence[int]) -> None:
        """Take the labelled categories of an image (contiguous ids) into the recall."""
        labels = sorted(set(labels))
        chosen = self._chosen(image_id).tolist()
        ranks = np.array([chosen.index(k) if k in chosen else math.inf for k in labels])
        groups = np.array([self.space.frequency[k] or "" for k in labels])
        if labels:
            self._ranks.setdefault(ALL, []).append(ranks)
        for group, name in FREQUENCY_NAMES.items():
            if (groups == group).any():
                self._ranks.setdefault(name, []).append(ranks[groups == group])

    def recall_curve(self) -> RecallCurve:
        """AR^C of the images added so far."""
        names = [ALL, *(n for n in FREQUENCY_NAMES.values() if n in self._ranks)]
        if len(names) == 2:
            names = [ALL]  # a single group is all of them
        counts = np.arange(self.num_selected)
        values = {
            name: [
                100 * float(np.mean([(ranks <= k).mean() for ranks in self._ranks[name]]))
                for k in counts
            ]
            for name in names
            if name in self._ranks
        }
        return RecallCurve(len(self.space), self.num_selected, values)

    def picture(self, image_id: Any, labels: Sequence[int]) -> PictureSelection:
        """What the page shows of an image with these labelled categories (contiguous ids)."""
        present = set(labels)
        above = {a for k in present for a in self._categories_above(k)}
        chosen, scores = self._chosen(image_id).tolist(), self._rows.get(image_id, (None, ()))[1]
        shown = [
            ShownCategory(
                self.path(k),
                float(score),
                PRESENT if k in present else ABOVE if k in above else ABSENT,
            )
            for k, score in zip(chosen[:MAX_SHOWN], scores[:MAX_SHOWN], strict=True)
        ]
        ranks = {k: chosen.index(k) if k in chosen else None for k in present}
        further = [(k, r) for k, r in ranks.items() if r is None or r >= MAX_SHOWN]
        further.sort(key=lambda x: (math.inf if x[1] is None else x[1], x[0]))
        return PictureSelection(
            shown=shown,
            further=[(self.space.names[k], rank) for k, rank in further],
            num_selected=len(chosen),
            num_labelled=len(present),
            num_found=sum(rank is not None for rank in ranks.values()),
        )

    def path(self, category: int) -> tuple[str, ...]:
        """Names from the root of the tree down to a category; the category alone without a tree."""
        tree = self.space.hierarchy
        node = NO_NODE if tree is None else int(tree.category_nodes[category])
        if tree is None or node == NO_NODE:
            return (self.space.names[category],)
        above = tree.path_from_root(node)[:-1]
        return (*(tree.node_names[n] for n in above), self.space.names[category])

    def _chosen(self, image_id: Any) -> np.ndarray:
        """(S,) contiguous ids, best first; none for an image without a selection."""
        if image_id not in self._rows:
            return np.zeros(0, dtype=np.int64)
        return self.space.contiguous_ids(self._rows[image_id][0])

    def _categories_above(self, category: int) -> set[int]:
        tree = self.space.hierarchy
        node = NO_NODE if tree is None else int(tree.category_nodes[category])
        if tree is None or node == NO_NODE:
            return set()
        return {int(k) for n in tree.ancestors(node) for k in tree.categories_at(int(n))}
