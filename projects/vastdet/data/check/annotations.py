# SPDX-License-Identifier: Apache-2.0
"""Checks of the annotations of a dataset, all boxes at once.

Legend: N annotations, I images. Boxes are XYXY in pixels.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vastdet.data.check import kinds
from vastdet.data.check.report import EXAMPLES_SAVED, Kind, Report
from vastdet.data.check.source import Dataset

# Boxes of 0- and 1-based pixels, and rounded ones, reach over the border by less.
BORDER_TOLERANCE = 1.0
# Less than this much of a side inside of the image, in pixels, is nothing.
MIN_VISIBLE = 1e-3
DUPLICATE_IOU = 0.99
MIN_BOXES_TO_SUSPECT = 10

BoxFormat = Literal["auto", "xywh", "xyxy"]


@dataclass
class Columns:
    """The annotations of a dataset as arrays.

    Attributes:
        image: (N,) position of the image, -1 if there is none of this id.
        category: (N,) position of the category, -1 if there is none of this id.
        raw: (N, 4) the numbers of each bbox; NaN where it is malformed.
        malformed: (N,) whether the bbox is not four numbers.
        boxes: (N, 4) XYXY pixels; 0 where the numbers are not finite.
        sizes: (I, 2) recorded width and height; NaN where not recorded.
        crowd: (N,) whether it is a crowd region.
    """

    image: np.ndarray
    category: np.ndarray
    raw: np.ndarray
    malformed: np.ndarray
    boxes: np.ndarray
    sizes: np.ndarray
    crowd: np.ndarray

    @property
    def limits(self) -> np.ndarray:
        """(N, 2) width and height of the image of each annotation; infinite where unknown."""
        if not len(self.sizes):
            return np.full((len(self.image), 2), np.inf)
        limits = np.where(self.image[:, None] >= 0, self.sizes[self.image], np.inf)
        return np.where(np.isnan(limits), np.inf, limits)

    @property
    def clipped(self) -> np.ndarray:
        """(N, 4) the part of each box inside of its image, XYXY."""
        return np.minimum(self.boxes.clip(min=0), np.tile(self.limits, 2))


@dataclass
class AnnotationRepair:
    """What a cleaned copy changes: (N,) masks over the annotations."""

    drop: np.ndarray
    clip: np.ndarray
    renumber: np.ndarray
    dropped_by: dict[str, int] = field(default_factory=dict)


def read_columns(dataset: Dataset, box_format: BoxFormat) -> Columns:
    """Gather the annotations of a dataset in arrays."""
    annotations, images = dataset["annotations"], dataset["images"]
    raw, malformed = _raw_boxes([a.get("bbox") for a in annotations])
    boxes = np.where(np.isfinite(raw).all(axis=1, keepdims=True), raw, 0)
    if box_format != "xyxy":
        boxes[:, 2:] += boxes[:, :2]
    return Columns(
        image=_positions(images, annotations, "image_id"),
        category=_positions(dataset["categories"], annotations, "category_id"),
        raw=raw,
        malformed=malformed,
        boxes=boxes,
        sizes=recorded_sizes(images),
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
    )


def recorded_sizes(images: list[dict[str, Any]]) -> np.ndarray:
    """(I, 2) width and height in pixels, NaN unless both are positive numbers."""
    sizes = np.full((len(images), 2), np.nan)
    for index, image in enumerate(images):
        size = (image.get("width"), image.get("height"))
        if all(isinstance(side, int | float) and 0 < side < np.inf for side in size):
            sizes[index] = size
    return sizes


def check_annotations(
    dataset: Dataset, columns: Columns, report: Report, box_format: BoxFormat
) -> AnnotationRepair:
    """Add what is wrong with the annotations to `report`; return how to mend it."""
    finder = _Finder(dataset, columns, report)
    boxes, clipped = columns.boxes, columns.clipped
    finite = np.isfinite(columns.raw).all(axis=1)
    has_area = finite & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    visible = has_area & (clipped[:, 2:] - clipped[:, :2] > MIN_VISIBLE).all(axis=1)
    finder.drop(kinds.ANNOTATION_WITHOUT_IMAGE, columns.image < 0)
    finder.drop(kinds.CATEGORY_UNKNOWN, columns.category < 0)
    finder.drop(kinds.BOX_MALFORMED, columns.malformed)
    finder.drop(kinds.BOX_NOT_FINITE, ~finite & ~columns.malformed)
    finder.drop(kinds.BOX_DEGENERATE, finite & ~has_area)
    finder.drop(kinds.BOX_OUTSIDE, has_area & ~visible)
    beyond = np.abs(boxes - clipped).max(axis=1, initial=0) > BORDER_TOLERANCE
    clip = visible & beyond
    finder.find(kinds.BOX_BEYOND, clip)
    usable = visible & (columns.image >= 0) & (columns.category >= 0) & ~columns.crowd
    finder.drop(kinds.BOX_DUPLICATE, duplicates(columns, usable))
    if box_format == "auto" and looks_like_xyxy(columns):
        finder.find(kinds.BOX_XYXY, finite)
    renumber, zero = _id_trouble(dataset["annotations"])
    finder.find(kinds.ANNOTATION_ID_DUPLICATE, renumber)
    finder.find(kinds.ANNOTATION_ID_ZERO, zero)
    finder.find(kinds.CROWD, columns.crowd)
    return AnnotationRepair(finder.dropped, clip, renumber | zero, finder.dropped_by)


def duplicates(columns: Columns, usable: np.ndarray) -> np.ndarray:
    """(N,) whether a box repeats an earlier one of its image and category.

    Boxes are sorted by image, category and left side; of two with an IoU of at least t the left
    sides differ by at most (1 - t) / t widths, so each is compared with the few next ones only.
    """
    places = np.flatnonzero(usable)
    boxes = columns.clipped[places]
    group = columns.image[places] * (columns.category.max(initial=0) + 1) + columns.category[places]
    order = np.lexsort((boxes[:, 0], group))
    places, boxes, group = places[order], boxes[order], group[order]
    reach = boxes[:, 0] + (boxes[:, 2] - boxes[:, 0]) * (1 - DUPLICATE_IOU) / DUPLICATE_IOU
    repeated = np.zeros(len(usable), dtype=bool)
    first = np.arange(len(places))
    shift = 1
    while len(first):
        first = first[first + shift < len(places)]
        second = first + shift
        near = (group[first] == group[second]) & (boxes[second, 0] <= reach[first] + 1e-9)
        first, second = first[near], second[near]
        same = _iou(boxes[first], boxes[second]) >= DUPLICATE_IOU
        repeated[np.maximum(places[first[same]], places[second[same]])] = True
        shift += 1
    return repeated


def looks_like_xyxy(columns: Columns) -> bool:
    """Whether boxes overrun their images as XYWH, and all fit them as XYXY."""
    limits = columns.limits
    judged = np.isfinite(columns.raw).all(axis=1) & np.isfinite(limits).all(axis=1)
    raw, limits = columns.raw[judged], limits[judged] + BORDER_TOLERANCE
    if len(raw) < MIN_BOXES_TO_SUSPECT:
        return False
    overrun = (raw[:, :2] + raw[:, 2:] > limits).any(axis=1)
    fits = (raw[:, 2:] > raw[:, :2]).all(axis=1) & (raw[:, 2:] <= limits).all(axis=1)
    return bool(overrun.mean() > 0.2 and fits.mean() > 0.99)


class _Finder:
    """Turns masks over the annotations into findings, and gathers which annotations go."""

    def __init__(self, dataset: Dataset, columns: Columns, report: Report) -> None:
        self.dataset = dataset
        self.columns = columns
        self.report = report
        self.dropped = np.zeros(len(columns.image), dtype=bool)
        self.dropped_by: dict[str, int] = {}

    def find(self, kind: Kind, mask: np.ndarray) -> None:
        places = np.flatnonzero(mask)
        examples = [self.describe(int(place)) for place in places[:EXAMPLES_SAVED]]
        self.report.add(kind, examples, len(places))

    def drop(self, kind: Kind, mask: np.ndarray) -> None:
        self.find(kind, mask)
        fresh = int((mask & ~self.dropped).sum())
        if fresh:
            self.dropped_by[kind.key] = fresh
        self.dropped |= mask

    def describe(self, place: int) -> str:
        annotation = self.dataset["annotations"][place]
        position = int(self.columns.image[place])
        image = self.dataset["images"][position] if position >= 0 else {}
        size = f"{image.get('width')}x{image.get('height')}" if image else "no such image"
        return (
            f"annotation {annotation.get('id')}, image {annotation.get('image_id')} "
            f"({image.get('file_name') or image.get('coco_url', '')} {size}), "
            f"category {annotation.get('category_id')}, bbox {annotation.get('bbox')}"
        )


def _raw_boxes(given: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) numbers with NaN for malformed boxes, and (N,) which are malformed."""
    try:
        boxes = np.array(given, dtype=np.float64)
        if boxes.shape == (len(given), 4):
            return boxes, np.zeros(len(given), dtype=bool)
    except (TypeError, ValueError):
        pass  # some box is malformed: find out which, one by one
    boxes = np.full((len(given), 4), np.nan)
    malformed = np.zeros(len(given), dtype=bool)
    for index, box in enumerate(given):
        is_box = isinstance(box, list | tuple) and len(box) == 4
        if is_box and all(isinstance(number, int | float) for number in box):
            boxes[index] = box
        else:
            malformed[index] = True
    return boxes, malformed


def _positions(
    entries: list[dict[str, Any]], annotations: list[dict[str, Any]], key: str
) -> np.ndarray:
    """(N,) position among `entries` of the id under `key`, -1 if no entry has it."""
    position: dict[Any, int] = {}
    for index, entry in enumerate(entries):
        position.setdefault(entry["id"], index)
    places = (position.get(annotation.get(key), -1) for annotation in annotations)
    return np.fromiter(places, dtype=np.int64, count=len(annotations))


def _id_trouble(annotations: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) which ids are missing or taken, and (N,) which are 0."""
    seen: set[Any] = {None}
    ids = [annotation.get("id") for annotation in annotations]
    taken = np.zeros(len(ids), dtype=bool)
    if len(set(ids) | seen) <= len(ids):
        for index, identity in enumerate(ids):
            taken[index] = identity in seen
            seen.add(identity)
    return taken, np.array([identity == 0 for identity in ids], dtype=bool) & ~taken


def _iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of pairs of XYXY boxes with area, row by row."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    intersection = sides.clip(min=0).prod(axis=1)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others)]
    return intersection / (areas[0] + areas[1] - intersection)
