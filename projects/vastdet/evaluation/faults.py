# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the rows of a results file, counted while its pieces are read.

Shapes: D detections, N images.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from vastdet.evaluation.ground_truth import GroundTruth

UNKNOWN = -1
MAX_NAMED = 3

Row = Mapping[str, Any]


def required_keys(iou_type: str) -> tuple[str, ...]:
    """What a row must have to be scored by an IoU type."""
    return ("image_id", "category_id", "score", "segmentation" if iou_type == "segm" else "bbox")


class Faults:
    """Counts the wrong rows by their fault, and keeps the first of each.

    A row counts for the first fault that it has, in the order in which `texts` lists them; so does
    the file.
    """

    def __init__(self, ground_truth: GroundTruth, *, iou_type: str = "bbox") -> None:
        self.ground_truth = ground_truth
        self.images = ground_truth.index_of_image
        self.categories = ground_truth.space.dataset_id_to_contiguous_id
        self.texts = {
            "fields": f"lack one of {list(required_keys(iou_type))}",
            "id": "have an image_id or category_id that is neither number nor text",
            "image_id": f"have an image_id that is none of the dataset's {len(self.images)}",
            "category_id": (
                f"have a category_id that is none of the dataset's {len(self.categories)} "
                f"({list(self.categories)[:5]}...)"
            ),
            "score": "have a score that is no finite number",
            "bbox": ("have a bbox that is not four finite numbers x, y, width >= 0, height >= 0"),
            "segmentation": (
                "have a segmentation that is neither RLE of the image's size nor polygons"
            ),
        }
        self._counts: dict[str, int] = dict.fromkeys(self.texts, 0)
        self._first: dict[str, tuple[int, Row]] = {}
        self._seen_images = np.zeros(len(self.images), dtype=bool)
        self._unknown_images: dict[Any, None] = {}  # in the order of the file

    def index_of_images(self, image_ids: Sequence[Any]) -> np.ndarray:
        """(D,) numbers of images, `UNKNOWN` for ids that the dataset lacks, which are remembered.

        Raises TypeError for an id that cannot be looked up, such as a list.
        """
        index = look_up(self.images, image_ids)
        missing = index == UNKNOWN
        self._seen_images[index[~missing]] = True
        self._unknown_images.update((image_ids[i], None) for i in np.flatnonzero(missing).tolist())
        return index

    def index_of_categories(self, category_ids: Sequence[Any]) -> np.ndarray:
        """(D,) contiguous ids, `UNKNOWN` for ids that the dataset lacks; TypeError as above."""
        return look_up(self.categories, category_ids)

    def add(self, fault: str, numbers: Sequence[int], row: Callable[[int], Row]) -> None:
        """Count the rows of these numbers in the file; `row` is asked for the first of them."""
        if len(numbers) and fault not in self._first:
            self._first[fault] = (numbers[0], row(numbers[0]))
        self._counts[fault] += len(numbers)

    def add_wrong_rows(
        self, fault: str, rows: Iterable[tuple[int, Row]], is_fine: Callable[[Row], bool]
    ) -> list[tuple[int, Row]]:
        """Count the rows that `is_fine` rejects, and return the others; rows come numbered."""
        fine: list[tuple[int, Row]] = []
        wrong: list[tuple[int, Row]] = []
        for numbered in rows:
            (fine if is_fine(numbered[1]) else wrong).append(numbered)
        self.add(fault, [number for number, _ in wrong], lambda _: wrong[0][1])
        return fine

    def complain(self, total: int) -> None:
        """Raise ValueError if any of `total` rows was wrong: the count, the fault, the first."""
        for fault, (number, row) in sorted(
            self._first.items(), key=lambda item: list(self.texts).index(item[0])
        ):
            if fault == "image_id":
                self._complain_of_another_dataset()
            first = {key: row[key] for key in list(row)[:6]}
            raise ValueError(
                f"{self._counts[fault]} of {total} detections {self.texts[fault]}; the first is "
                f"number {number}: {shorten(json.dumps(first, default=str))}"
            )

    def _complain_of_another_dataset(self) -> None:
        """Raise ValueError when most images are unknown."""
        unknown, seen = list(self._unknown_images), int(self._seen_images.sum())
        if len(unknown) > seen:
            raise ValueError(
                f"{len(unknown)} of its {len(unknown) + seen} images are not in "
                f"{self.ground_truth.source or 'the dataset'}: these are the results of another "
                f"dataset or split (it has image ids such as {list(self.images)[:MAX_NAMED]}, the "
                f"results {unknown[:MAX_NAMED]})"
            )


def look_up(index: Mapping[Any, int], ids: Sequence[Any]) -> np.ndarray:
    """(D,) int64 numbers of the ids, `UNKNOWN` for those that `index` lacks."""
    return np.fromiter(map(index.get, ids, repeat(UNKNOWN)), np.int64, len(ids))


def shorten(text: str, limit: int = 200) -> str:
    """The text, cut to a line's length."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
