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
from vastdet.vocabulary import CategoryHierarchy, CategorySpace
from vastdet.vocabulary.hierarchy import NO_NODE

PRESENT, ANCESTOR, ABSENT = "present", "ancestor", "absent"
MAX_SHOWN = 12
ALL = "all categories"


@dataclass(frozen=True)
class ShownCategory:
    """A selected category.

    `path` leads from the root of the category tree to the category itself; without a tree it is the
    category alone. `state` tells whether it is labelled in the picture ("present"), is an ancestor
    of one that is ("ancestor"), or neither ("absent"). `score` is NaN where the model gave none.
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
        is_category = content.categories >= 0
        try:
            found = space.contiguous_ids(content.categories[is_category])
        except ValueError as error:
            raise ValueError(f"{file} is of another vocabulary: {error}; evaluate again") from error
        ids = np.zeros(content.categories.shape, dtype=np.int64)
        ids[is_category] = found
        columns = (content.images.tolist(), is_category, ids, content.scores)
        # Contiguous ids and scores of each image, best first.
        self._rows = {
            image_id: (row[kept], scores[kept])
            for image_id, kept, row, scores in zip(*columns, strict=True)
        }
        # Ranks of the labels of each image that has any, by group.
        self._ranks: dict[str, list[np.ndarray]] = {}

    def add(self, image_id: Any, labels: Sequence[int]) -> None:
        """Take the labelled categories of an image (contiguous ids) into the recall."""
        labels = sorted(set(labels))
        chosen = self._row(image_id)[0].tolist()
        ranks = np.array([chosen.index(k) if k in chosen else math.inf for k in labels])
        groups = np.array([self.space.frequency[k] or "" for k in labels])
        if labels:
            self._ranks.setdefault(ALL, []).append(ranks)
        for group, name in FREQUENCY_NAMES.items():
            if (groups == group).any():
                self._ranks.setdefault(name, []).append(ranks[groups == group])

    def recall_curve(self) -> RecallCurve:
        """AR^C of the images added so far; a group that has all of their labels has no curve."""
        num_labels = {name: sum(map(len, ranks)) for name, ranks in self._ranks.items()}
        groups = [n for n in FREQUENCY_NAMES.values() if 0 < num_labels.get(n, 0) < num_labels[ALL]]
        values = {
            name: mean_recall(self._ranks[name], self.num_selected)
            for name in [ALL, *groups]
            if name in self._ranks
        }
        return RecallCurve(len(self.space), self.num_selected, values)

    def picture(self, image_id: Any, labels: Sequence[int]) -> PictureSelection:
        """What the page shows of an image with these labelled categories (contiguous ids)."""
        present = set(labels)
        ancestors = {a for k in present for a in self._ancestors_of(k)}
        chosen, scores = (x.tolist() for x in self._row(image_id))
        shown = [
            ShownCategory(
                self.path(k),
                score,
                PRESENT if k in present else ANCESTOR if k in ancestors else ABSENT,
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
        found = self._node_of(category)
        if found is None:
            return (self.space.names[category],)
        tree, node = found
        ancestors = tree.path_from_root(node)[:-1]
        return (*(tree.node_names[n] for n in ancestors), self.space.names[category])

    def _row(self, image_id: Any) -> tuple[np.ndarray, np.ndarray]:
        """(S,) contiguous ids and their scores, best first; none without a selection."""
        return self._rows.get(image_id, (np.zeros(0, np.int64), np.zeros(0, np.float32)))

    def _ancestors_of(self, category: int) -> set[int]:
        """The categories that are ancestors of a category."""
        found = self._node_of(category)
        if found is None:
            return set()
        tree, node = found
        return {int(k) for n in tree.ancestors(node) for k in tree.categories_at(int(n))}

    def _node_of(self, category: int) -> tuple[CategoryHierarchy, int] | None:
        """The tree and the node of a category in it; None without a tree or outside it."""
        tree = self.space.hierarchy
        node = NO_NODE if tree is None else int(tree.category_nodes[category])
        return None if tree is None or node == NO_NODE else (tree, node)


def mean_recall(ranks: Sequence[np.ndarray], num_selected: int) -> list[float]:
    """Recall in percent of the 1 to S best selected categories, as the mean over images.

    `ranks` has those of the labels of each image, at least one; infinite where not selected.
    """
    weights = np.concatenate([np.full(len(own), 1 / len(own)) for own in ranks])
    every = np.concatenate(ranks)
    is_in = every < num_selected
    hits = np.bincount(every[is_in].astype(np.int64), weights[is_in], minlength=num_selected)
    return (100 * hits.cumsum() / len(ranks)).tolist()
