# SPDX-License-Identifier: Apache-2.0
"""Results files: reading them, with every fault named, and writing them.

COCO's JSON is read in pieces of a few megabytes, each of which becomes arrays before the next one
is parsed: as Python objects, the results of a V3Det-size set need 6 GB and more. What is wrong with
a row is looked into row by row only in a piece whose columns, as arrays, are not all right.

Shapes: D detections.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pycocotools.mask as mask_util

from vastdet.evaluation.detections import NO_DETECTIONS, Detections, to_coco
from vastdet.evaluation.faults import UNKNOWN, Faults, required_keys
from vastdet.evaluation.ground_truth import GroundTruth, describe
from vastdet.evaluation.results_store import is_store, read_store, write_store
from vastdet.files import local_path, read_json, without_garbage_collection, write_atomically

JSON_NAME, STORE_NAME = "coco_instances_results.json", "instances_results.npz"
# An evaluator writes more detections than these as .npz: a V3Det-size set is 1.4 GB of JSON.
MAX_JSON_DETECTIONS = 1_000_000
JSON_BLOCK = 50_000  # detections that are Python objects at a time
PIECE_BYTES = 16 * 2**20
# How far apart the end of an entry and the start of the next may be: a comma, and indentation.
MAX_GAP = 64

Row = Mapping[str, Any]
Progress = Callable[[float], object]


def write_results(
    folder: Path, detections: Detections, ground_truth: GroundTruth, *, dataset: str
) -> Path:
    """Write an evaluation's results file and return its path.

    It is `coco_instances_results.json`, COCO's format, and above `MAX_JSON_DETECTIONS`
    `instances_results.npz` (`results_store`); the folder keeps no file of the other kind, which
    would be of an earlier evaluation.
    """
    json_file, store = folder / JSON_NAME, folder / STORE_NAME
    if len(detections) <= MAX_JSON_DETECTIONS:
        write_results_json(json_file, detections, ground_truth)
        store.unlink(missing_ok=True)
        return json_file
    write_store(store, detections, ground_truth, dataset=dataset)
    json_file.unlink(missing_ok=True)
    return store


def write_results_json(path: str | Path, detections: Detections, ground_truth: GroundTruth) -> None:
    """Write a COCO results file, whole or not at all; numbers round-trip exactly.

    Raises ValueError for numbers that are not finite, which JSON does not have.
    """
    finite = np.isfinite(detections.scores) & np.isfinite(detections.boxes).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{(~finite).sum()} of {len(finite)} detections have a box or score that is not "
            f"finite, the first is number {int(np.argmin(finite))}; they cannot be written to "
            f"{path}"
        )

    def write(file: IO[bytes]) -> None:
        file.write(b"[")
        for start in range(0, len(detections), JSON_BLOCK):
            block = detections[np.arange(start, min(start + JSON_BLOCK, len(detections)))]
            text = orjson.dumps(to_coco(block, ground_truth), option=orjson.OPT_SERIALIZE_NUMPY)
            file.write(b"," if start else b"")
            file.write(text[1:-1])
        file.write(b"]")

    write_atomically(path, write)


def read_results(
    paths: Sequence[str | Path] | str | Path,
    ground_truth: GroundTruth,
    *,
    iou_type: str = "bbox",
    progress: Progress = lambda share: None,
) -> Detections:
    """Detections of results files: COCO's JSON, or the .npz of `results_store`.

    COCO's JSON is a list of image_id, category_id, score, and bbox. For iou_type "segm" each entry
    needs a segmentation (RLE or polygons) and its bbox is optional.

    Args:
        paths: a file, or several that hold parts of a dataset's results, by image or by category;
            the detections of several are ordered by image, as an evaluator writes them.
        ground_truth: what the results are of.
        iou_type: "bbox" or "segm".
        progress: called with the share of the bytes that was read, in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what cannot be scored against `ground_truth`, naming the first wrong entry and
            how many there are; files that both have detections of a category in an image.
    """
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    sizes = [local_path(path).stat().st_size for path in files]
    parts: list[Detections] = []
    for number, path in enumerate(files):
        done, share = sum(sizes[:number]) / max(sum(sizes), 1), sizes[number] / max(sum(sizes), 1)

        def report(part: float, done: float = done, share: float = share) -> None:
            progress(done + share * part)

        if is_store(path):
            found = read_store(path, ground_truth, iou_type=iou_type)
        else:
            found = read_json_results(path, ground_truth, iou_type=iou_type, progress=report)
        for other, part in zip(files, parts, strict=False):
            check_disjoint(other, part, path, found, ground_truth)
        parts.append(found)
        report(1)
    if len(parts) == 1:
        return parts[0]
    merged = Detections.concatenate(parts)
    return merged[np.argsort(merged.image_index, kind="stable")]


def check_disjoint(
    one_path: str | Path,
    one: Detections,
    other_path: str | Path,
    other: Detections,
    ground_truth: GroundTruth,
) -> None:
    """Raise ValueError when two results files have detections of a category in the same image."""
    pairs, other_pairs = (
        np.unique(part.image_index * ground_truth.num_categories + part.category_index)
        for part in (one, other)
    )
    both = np.intersect1d(pairs, other_pairs, assume_unique=True)
    if both.size:
        image, category = divmod(int(both[0]), ground_truth.num_categories)
        raise ValueError(
            f"{one_path} and {other_path} both have detections of {both.size} pairs of image and "
            f"category, the first image id {ground_truth.image_ids[image]!r} and category id "
            f"{ground_truth.space.dataset_ids[category]}; parts of one dataset's results must not "
            "overlap, leave one of the files out"
        )


def read_json_results(
    path: str | Path,
    ground_truth: GroundTruth,
    *,
    iou_type: str = "bbox",
    progress: Progress = lambda share: None,
) -> Detections:
    """Detections of one COCO results file; see `read_results`."""
    faults = Faults(ground_truth, iou_type=iou_type)
    parts: list[Detections] = []
    total = 0
    with without_garbage_collection():
        try:
            for rows in json_pieces(local_path(path), progress):
                check_rows(path, rows)
                parts.append(rows_to_detections(rows, total, iou_type, faults))
                total += len(rows)
        except PieceError:
            # Not a plain list, or damaged: as a whole it can be read, or be said what is wrong.
            rows = read_json(path, advice="expected a complete COCO results file")
            check_rows(path, rows)
            faults, total = Faults(ground_truth, iou_type=iou_type), len(rows)
            parts = [rows_to_detections(rows, 0, iou_type, faults)]
    try:
        faults.complain(total)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Detections.concatenate(parts)


class PieceError(Exception):
    """The file cannot be read in pieces."""


def json_pieces(path: Path, progress: Progress = lambda share: None) -> Iterator[list[Any]]:
    """The entries of a JSON file that is a list of objects, some megabytes of it at a time.

    Raises PieceError when the file is not such a list, when it is damaged, and when a piece that
    looked whole was not, because entries hold lists of objects themselves.
    """
    size = max(path.stat().st_size, 1)
    with path.open("rb") as file:
        text = file.read(PIECE_BYTES).lstrip()
        if not text.startswith(b"["):
            raise PieceError
        text = text[1:]
        while more := file.read(PIECE_BYTES):
            end = end_of_last_entry(text)
            if end:
                yield parse(b"[" + text[:end] + b"]")
                text = text[end:].lstrip().removeprefix(b",")
            progress(file.tell() / size)
            text += more
        yield parse(b"[" + text)


def end_of_last_entry(text: bytes) -> int:
    """Where the last object that another one follows in the list ends; 0 if there is none."""
    start = len(text)
    while (start := text.rfind(b"{", 0, start)) > 0:
        gap = text[max(0, start - MAX_GAP) : start]
        before = gap.rstrip().removesuffix(b",").rstrip()
        if before.endswith(b"}") and b"," in gap[len(before) :]:
            return start - len(gap) + len(before)
    return 0


def parse(text: bytes) -> list[Any]:
    """The content of a JSON list; PieceError when it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # orjson is strict: it knows no NaN, which must be found and named.
        try:
            return json.loads(text)
        except ValueError:
            raise PieceError from None


def check_rows(path: str | Path, rows: Any) -> None:
    """Raise ValueError unless it is a list of objects."""
    if not isinstance(rows, list) or not set(map(type, rows)) <= {dict}:
        raise ValueError(
            f"{path} is not a COCO results file: expected a list of objects, got {describe(rows)}"
        )


def from_results(
    rows: Sequence[Row], ground_truth: GroundTruth, *, iou_type: str = "bbox"
) -> Detections:
    """Detections of COCO results in memory; see `read_results`."""
    faults = Faults(ground_truth, iou_type=iou_type)
    detections = rows_to_detections(rows, 0, iou_type, faults)
    faults.complain(len(rows))
    return detections


def rows_to_detections(
    rows: Sequence[Row], first: int, iou_type: str, faults: Faults
) -> Detections:
    """Detections of entries, the first of which has the number `first` in the file.

    When an entry is wrong there are none, and `faults` knows why.
    """
    detections = convert(rows, iou_type, faults)
    if detections is None:
        add_faults(rows, first, iou_type, faults)
        return NO_DETECTIONS
    return detections


def convert(rows: Sequence[Row], iou_type: str, faults: Faults) -> Detections | None:
    """Detections of entries that are all right; None if one is not.

    Columns are looked at as a whole: `add_faults` has the same rules for a single entry.
    """
    try:
        image_index = faults.index_of_images([row["image_id"] for row in rows])
        category_index = faults.index_of_categories([row["category_id"] for row in rows])
        scores = finite_numbers([row["score"] for row in rows])
        if scores is None or UNKNOWN in image_index or UNKNOWN in category_index:
            return None
        masks = None
        if iou_type == "segm":
            masks = read_masks(rows, image_index, faults.ground_truth)
            if any(mask is None for mask in masks):
                return None
        boxes = box_array(row_boxes(rows, masks))
    except (KeyError, TypeError):
        return None
    return None if boxes is None else Detections(image_index, category_index, boxes, scores, masks)


def finite_numbers(values: Sequence[Any]) -> np.ndarray | None:
    """(D,) float64, or None where one is no number (as `is_finite` has it)."""
    if not all(
        issubclass(kind, (int, float)) and kind is not bool for kind in set(map(type, values))
    ):
        return None
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError:
        return None
    return array if np.isfinite(array).all() else None


def box_array(boxes: Sequence[Any]) -> np.ndarray | None:
    """(D, 4) float64, or None where one is no box (as `is_box` has it)."""
    if not all(issubclass(kind, (list, tuple)) for kind in set(map(type, boxes))):
        return None
    if not set(map(len, boxes)) <= {4}:
        return None
    numbers = finite_numbers(list(chain.from_iterable(boxes)))
    if numbers is None:
        return None
    array = numbers.reshape(-1, 4)
    return array if (array[:, 2:] >= 0).all() else None


def row_boxes(rows: Sequence[Row], masks: np.ndarray | None) -> list[Any]:
    """What the entries have for boxes; an entry without gets the box of its mask."""
    if masks is None:
        return [row["bbox"] for row in rows]
    return [
        row["bbox"] if "bbox" in row else mask_util.toBbox(mask).tolist()
        for row, mask in zip(rows, masks, strict=True)
    ]


def read_masks(
    rows: Sequence[Row], image_index: np.ndarray, ground_truth: GroundTruth
) -> np.ndarray:
    """(D,) compressed RLE; None for a mask that cannot be read or is of another size."""
    masks = np.empty(len(rows), dtype=object)
    sizes = ground_truth.image_sizes[image_index].tolist()
    for number, (row, (height, width)) in enumerate(zip(rows, sizes, strict=True)):
        masks[number] = compressed(row["segmentation"], height, width)
    return masks


def add_faults(rows: Sequence[Row], first: int, iou_type: str, faults: Faults) -> None:
    """Tell `faults` which entries are wrong; at least one is."""
    required = required_keys(iou_type)
    truth = faults.ground_truth

    def has_mask(row: Row) -> bool:
        height, width = truth.image_sizes[faults.images[row["image_id"]]].tolist()
        return compressed(row["segmentation"], height, width) is not None

    tests: dict[str, Callable[[Row], bool]] = {
        "fields": lambda row: all(key in row for key in required),
        "id": lambda row: all(isinstance(row[key], (int, float, str)) for key in required[:2]),
        "image_id": lambda row: row["image_id"] in faults.images,
        "category_id": lambda row: row["category_id"] in faults.categories,
        "score": lambda row: is_finite(row["score"]),
        "bbox": lambda row: "bbox" not in row or is_box(row["bbox"]),
    }
    if iou_type == "segm":
        tests["segmentation"] = has_mask
    left: Sequence[tuple[int, Row]] = list(enumerate(rows, first))
    for fault, is_fine in tests.items():
        if fault == "image_id":
            faults.index_of_images([row["image_id"] for _, row in left])
        left = faults.add_wrong_rows(fault, left, is_fine)
    assert len(left) < len(rows), "the columns are wrong, but no entry is"


def is_finite(value: Any) -> bool:
    """Whether it is a number other than NaN and the infinities."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def is_box(value: Any) -> bool:
    """Whether it is x, y, width, height."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(map(is_finite, value))
        and value[2] >= 0
        and value[3] >= 0
    )


def compressed(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """A segmentation of a height x width image as compressed RLE, or None if it is none."""
    if isinstance(segmentation, list):
        if not segmentation or not all(isinstance(part, list) for part in segmentation):
            return None
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return None
    if list(segmentation["size"]) != [height, width]:
        return None
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation
