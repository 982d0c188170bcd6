# SPDX-License-Identifier: Apache-2.0
"""The records of a dataset as arrays, for files of a million boxes.

N images, A annotations. A record, the dict that Detectron2 knows, is made when it is asked for.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.data import DatasetFromList
from detectron2.structures import BoxMode

Record = dict[str, Any]
NUM_BOX_SIDES = 4
MAX_EXACT_INTEGER = 1 << 53  # integers beyond it change when they become float64
# The key under which an image keeps what the arrays cannot hold, one dict an annotation.
PARTIAL_KEY = "annotations"


@dataclass(frozen=True, eq=False)
class RecordTable(Sequence[Record]):
    """A sequence of N records whose annotations lie in arrays, in the order of the records.

    Attributes:
        images: N records without their annotations. Where one has `annotations`, these are A_n
            dicts with the further keys of each annotation, and with what replaces its columns.
        starts: N + 1 numbers; the annotations of image n are rows starts[n] to starts[n + 1].
        boxes: (A, 4) float64, XYWH_ABS pixels.
        categories: (A,) int32, contiguous ids.
        is_crowd: (A,) bool.
    """

    images: Sequence[Record]
    starts: np.ndarray
    boxes: np.ndarray
    categories: np.ndarray
    is_crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        """The record of an index; a slice gives a list of records."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index = int(index) % len(self)
        record = dict(self.images[index])
        rows = slice(*self.starts[index : index + 2].tolist())
        columns = zip(
            self.boxes[rows].tolist(),
            self.categories[rows].tolist(),
            self.is_crowd[rows].tolist(),
            record.get(PARTIAL_KEY) or itertools.repeat({}),
            strict=False,
        )
        record["annotations"] = [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": category,
                "iscrowd": int(crowd),
                **partial,
            }
            for box, category, crowd, partial in columns
        ]
        return record

    @property
    def image_index(self) -> np.ndarray:
        """(A,) the number in [0, N) of the image of each annotation."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def subset(self, kept: np.ndarray) -> "RecordTable":
        """The records n where `kept` (N,) is true, in the same order."""
        rows = np.repeat(kept, np.diff(self.starts))
        return RecordTable(
            images=list(itertools.compress(self.images, kept.tolist())),
            starts=starts_of(np.diff(self.starts)[kept]),
            boxes=self.boxes[rows],
            categories=self.categories[rows],
            is_crowd=self.is_crowd[rows],
        )

    def without_empty(self) -> "RecordTable":
        """The records that have an annotation that is no crowd."""
        kept = np.zeros(len(self), dtype=bool)
        kept[self.image_index[~self.is_crowd]] = True
        return self.subset(kept)

    def shared(self) -> "RecordTable":
        """The same records, kept so that worker processes share their memory.

        Objects of Python would be copied page by page as soon as a worker looks at them.
        """
        return replace(self, images=DatasetFromList(list(self.images), copy=False))

    @classmethod
    def concatenate(cls, tables: Sequence["RecordTable"]) -> "RecordTable":
        """The records of one or more tables, one table after the other."""
        if len(tables) == 1:
            return tables[0]
        return cls(
            images=list(itertools.chain.from_iterable(table.images for table in tables)),
            starts=starts_of(np.concatenate([np.diff(table.starts) for table in tables])),
            boxes=np.concatenate([table.boxes for table in tables]),
            categories=np.concatenate([table.categories for table in tables]),
            is_crowd=np.concatenate([table.is_crowd for table in tables]),
        )


def build_table(
    images: Sequence[Record],
    annotations: Sequence[Mapping[str, Any]],
    image_index: np.ndarray,
    categories: np.ndarray,
    *,
    extra_keys: Sequence[str] = (),
) -> RecordTable:
    """A table of annotations as they stand in a file.

    Args:
        images: N records without annotations, which the table takes over.
        annotations: those of the file; bbox (XYWH_ABS pixels; [] where there is none) and iscrowd
            (0 where there is none) are kept whatever they hold.
        image_index: (A,) the image of each annotation; -1 leaves it out.
        categories: (A,) contiguous ids.
        extra_keys: further keys to keep where an annotation has them.
    """
    order = np.argsort(image_index, kind="stable")[np.count_nonzero(image_index < 0) :]
    boxes, odd_boxes = _boxes(annotations)
    is_crowd, odd_crowds = _crowds(annotations)
    partial: dict[int, Record] = {}
    for key, odd in (("bbox", odd_boxes), ("iscrowd", odd_crowds)):
        for row, value in odd.items():
            partial.setdefault(row, {})[key] = value
    if extra_keys:
        for row, annotation in enumerate(annotations):
            extra = {key: annotation[key] for key in extra_keys if key in annotation}
            if extra:
                partial.setdefault(row, {}).update(extra)
    starts = starts_of(np.bincount(image_index[order], minlength=len(images)))
    for n in sorted({int(image_index[row]) for row in partial} - {-1}):
        rows = order[starts[n] : starts[n + 1]].tolist()
        images[n][PARTIAL_KEY] = [partial.get(row, {}) for row in rows]
    return RecordTable(
        images=images,
        starts=starts,
        boxes=boxes[order],
        categories=categories[order],
        is_crowd=is_crowd[order],
    )


def training_image_counts(records: Iterable[Record], num_categories: int) -> np.ndarray:
    """(K,) int64: how many records show each of `num_categories`, crowds left out."""
    if isinstance(records, RecordTable):
        pairs = records.image_index.astype(np.int64) * num_categories + records.categories
        pairs = np.unique(pairs[~records.is_crowd])
        return np.bincount(pairs % num_categories, minlength=num_categories)
    counts = np.zeros(num_categories, dtype=np.int64)
    for record in records:
        shown = {a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)}
        counts[list(shown)] += 1
    return counts


def starts_of(counts: np.ndarray) -> np.ndarray:
    """(N + 1,) where each of N runs of the given lengths starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)])


def _boxes(annotations: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, dict[int, Any]]:
    """Boxes (A, 4), and by row those that are no list of four numbers."""
    values = [annotation.get("bbox", []) for annotation in annotations]
    odd = dict(_odd_boxes(values))
    for row in odd:
        values[row] = [0.0] * NUM_BOX_SIDES
    sides = itertools.chain.from_iterable(values)
    boxes = np.fromiter(sides, np.float64, NUM_BOX_SIDES * len(values))
    return boxes.reshape(-1, NUM_BOX_SIDES), odd


def _odd_boxes(values: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    # Types as sets, and loops within the interpreter: a look at each box takes several times as
    # long, and is needed only where something is wrong.
    if set(map(type, values)) <= {list} and set(map(len, values)) <= {NUM_BOX_SIDES}:
        kinds = set(map(type, itertools.chain.from_iterable(values)))
        sides = itertools.chain.from_iterable(values)
        if kinds <= {int, float} and all(
            abs(side) <= MAX_EXACT_INTEGER for side in sides if type(side) is int
        ):
            return
    for row, value in enumerate(values):
        usual = type(value) is list and len(value) == NUM_BOX_SIDES
        if not usual or not all(
            type(side) is float or (type(side) is int and abs(side) <= MAX_EXACT_INTEGER)
            for side in value
        ):
            yield row, value


def _crowds(annotations: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, dict[int, Any]]:
    """Which annotations are crowds (A,), and by row the values of iscrowd that are not 0 or 1."""
    values = [annotation.get("iscrowd", 0) for annotation in annotations]
    if set(map(type, values)) <= {int} and set(values) <= {0, 1}:
        return np.fromiter(values, bool, len(values)), {}
    odd = {k: v for k, v in enumerate(values) if type(v) is not int or v not in (0, 1)}
    return np.array([value != 0 for value in values]), odd
