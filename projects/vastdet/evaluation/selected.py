# SPDX-License-Identifier: Apache-2.0
"""What detectors that select categories before they detect select: AR^C, and as a file.

N images, S selected categories an image.
"""

import json
import logging
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.selection import NOTHING, category_recall
from vastdet.files import write_atomically

# What an output calls the selected categories, (S,) contiguous ids, and their scores, (S,).
KEY, SCORES_KEY = "selected_categories", "selection_scores"
FILE_NAME = "selected_categories.npz"
FILE_FORMAT = "vastdet.SelectedCategories"
FILE_VERSION = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """The categories that were selected for each of N images, as the model orders them.

    Attributes:
        images: (N,) numbers of images, or their ids.
        categories: (N, S) contiguous ids, or dataset ids; -1 after the last of a row.
        scores: (N, S) float32, NaN where the model gave none.
    """

    images: np.ndarray
    categories: np.ndarray
    scores: np.ndarray

    @property
    def num_selected(self) -> int:
        """S."""
        return self.categories.shape[1]


class SelectedCategories:
    """Keeps what a model selects for each image; nothing where it does not select."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, image_index: int, output: Mapping[str, Any]) -> None:
        """Take the selection from a model's output, if it has one."""
        if KEY not in output:
            return
        categories = output[KEY].cpu().numpy().astype(np.int32)
        scores = np.full(len(categories), np.nan, dtype=np.float32)
        if SCORES_KEY in output:
            scores[:] = output[SCORES_KEY].float().cpu().numpy()
        self._rows[image_index] = categories, scores

    def gather(self) -> Selection | None:
        """The selections of all processes on the main one; None where none selected.

        All processes must call it. Of an image that several saw, the first one's is kept.
        """
        rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for part in comm.gather(self._rows):
            rows = part | rows
        if not rows:
            return None
        width = max(len(categories) for categories, _ in rows.values())
        chosen = np.full((len(rows), width), NOTHING, dtype=np.int32)
        scores = np.full((len(rows), width), np.nan, dtype=np.float32)
        for place, (own, own_scores) in enumerate(rows.values()):
            chosen[place, : len(own)], scores[place, : len(own)] = own, own_scores
        return Selection(np.fromiter(rows, dtype=np.int64, count=len(rows)), chosen, scores)


def selection_scores(ground_truth: GroundTruth, selection: Selection) -> dict[str, float]:
    """`ARC<S>` in percent, and that of rare, common and frequent categories where they are known.

    Args:
        ground_truth: N images; those without a selection count as images with an empty one.
        selection: of image numbers and contiguous ids, see `SelectedCategories.gather`.
    """
    num_selected = selection.num_selected
    selected = np.full((len(ground_truth.image_ids), num_selected), NOTHING, dtype=np.int64)
    selected[selection.images] = selection.categories
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


def write_selection(folder: Path, selection: Selection | None, ground_truth: GroundTruth) -> None:
    """Write `selected_categories.npz`, in ids of the dataset; without a selection, remove it.

    Its columns are `categories` (N, S), -1 after the last of a row, and `scores` (N, S) float32;
    the ids of the images are in the header, JSON.
    """
    path = folder / FILE_NAME
    if selection is None:
        # Of an earlier evaluation.
        path.unlink(missing_ok=True)
        return
    image_ids = [ground_truth.image_ids[index] for index in selection.images.tolist()]
    header = {"format": FILE_FORMAT, "version": FILE_VERSION, "image_ids": image_ids}
    is_category = selection.categories != NOTHING
    categories = np.full(selection.categories.shape, NOTHING, dtype=np.int64)
    categories[is_category] = ground_truth.space.dataset_ids_of(selection.categories[is_category])
    columns: dict[str, Any] = {
        "header": np.array(json.dumps(header)),
        "categories": categories,
        "scores": selection.scores,
    }
    write_atomically(path, lambda file: np.savez_compressed(file, **columns))


def read_selection(path: Path) -> Selection:
    """Read `selected_categories.npz`; images and categories are ids of the dataset.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not one that `write_selection` wrote.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(str(archive["header"]))
            categories, scores = archive["categories"], archive["scores"]
        known = (header["format"], header["version"]) == (FILE_FORMAT, FILE_VERSION)
        images = np.empty(len(header["image_ids"]), dtype=object)
        images[:] = header["image_ids"]
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}; evaluate again to rewrite it") from error
    is_table = categories.ndim == 2 and categories.dtype.kind in "iu"
    fits = categories.shape == scores.shape and categories.shape[:1] == images.shape
    if not (known and is_table and fits):
        raise ValueError(
            f"{path} holds no selected categories ({FILE_FORMAT!r}, version {FILE_VERSION}); "
            "evaluate again to rewrite it"
        )
    return Selection(images, categories, scores)
