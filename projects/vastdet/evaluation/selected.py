# SPDX-License-Identifier: Apache-2.0
"""AR^C of detectors that select categories for an image before they detect.

N images, S selected categories an image.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.utils import comm

from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.selection import NOTHING, category_recall

# What an output calls the selected categories: (S,) contiguous ids.
KEY = "selected_categories"

logger = logging.getLogger(__name__)


class SelectedCategories:
    """Keeps what a model selects for each image; nothing where it does not select."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._rows: dict[int, np.ndarray] = {}

    def add(self, image_index: int, output: Mapping[str, Any]) -> None:
        """Take the selection from a model's output, if it has one."""
        if KEY in output:
            self._rows[image_index] = output[KEY].cpu().numpy().astype(np.int32)

    def gather(self) -> np.ndarray | None:
        """(N', 1 + S) on the main process: image, then its categories; None where none selected.

        All processes must call it.
        """
        own = None
        if self._rows:
            width = max(len(row) for row in self._rows.values())
            own = np.full((len(self._rows), 1 + width), NOTHING, dtype=np.int32)
            for place, (image, row) in enumerate(self._rows.items()):
                own[place, 0] = image
                own[place, 1 : 1 + len(row)] = row
        parts = [part for part in comm.gather(own) if part is not None]
        if not parts:
            return None
        width = max(part.shape[1] for part in parts)
        return np.concatenate(
            [np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=NOTHING) for p in parts]
        )


def selection_scores(ground_truth: GroundTruth, gathered: np.ndarray) -> dict[str, float]:
    """`ARC<S>` in percent, and that of rare, common and frequent categories where they are known.

    Args:
        ground_truth: N images; those without a selection count as images with an empty one.
        gathered: (N', 1 + S), see `SelectedCategories.gather`.
    """
    num_selected = gathered.shape[1] - 1
    selected = np.full((len(ground_truth.image_ids), num_selected), NOTHING, dtype=np.int64)
    selected[gathered[:, 0]] = gathered[:, 1:]
    name = f"ARC{num_selected}"
    scores = {name: category_recall(ground_truth, selected)}
    frequency = np.array([group or "" for group in ground_truth.space.frequency])
    for suffix in ("r", "c", "f"):
        rows = frequency[ground_truth.category_index] == suffix
        if rows.any():
            scores[name + suffix] = category_recall(
                ground_truth.take(np.flatnonzero(rows)), selected
            )
    logger.info(
        "Category recall of the selection: %s",
        ", ".join(f"{key} {value:.1f}" for key, value in scores.items()),
    )
    return scores
