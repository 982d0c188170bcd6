# SPDX-License-Identifier: Apache-2.0
"""Reading a COCO results file, with every fault of it named.

Shapes: D detections.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from vastdet.evaluation.detections import Detections
from vastdet.evaluation.ground_truth import GroundTruth, describe
from vastdet.files import read_json


def read_results(
    path: str | Path, ground_truth: GroundTruth, *, iou_type: str = "bbox"
) -> Detections:
    """Detections of a COCO results file: a JSON list of image_id, category_id, score, and bbox.

    For iou_type "segm" each entry needs a segmentation (RLE or polygons) and its bbox is optional.
    Raises FileNotFoundError without a file; raises ValueError, naming the first wrong entry and
    how many there are, for anything that cannot be scored against `ground_truth`.
    """
    rows = read_json(path, advice="expected a complete COCO results file")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"{path} is not a COCO results file: expected a list of objects, got {describe(rows)}"
        )
    try:
        return from_results(rows, ground_truth, iou_type=iou_type)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_results(
    rows: Sequence[Mapping[str, Any]], ground_truth: GroundTruth, *, iou_type: str = "bbox"
) -> Detections:
    """Detections of COCO results in memory; see `read_results`."""
    shape = "segmentation" if iou_type == "segm" else "bbox"
    required = ("image_id", "category_id", "score", shape)
    complain(rows, lambda r: not all(k in r for k in required), f"lack one of {list(required)}")
    complain(
        rows,
        lambda row: not all(isinstance(row[k], (int, float, str)) for k in required[:2]),
        "have an image_id or category_id that is neither number nor text",
    )
    check_images(rows, ground_truth)
    categories = ground_truth.space.dataset_id_to_contiguous_id
    complain(
        rows,
        lambda row: row["category_id"] not in categories,
        f"have a category_id that is none of the dataset's {ground_truth.num_categories} "
        f"({list(categories)[:5]}...)",
    )
    complain(rows, lambda row: not is_finite(row["score"]), "have a score that is no finite number")
    complain(
        rows,
        lambda row: "bbox" in row and not is_box(row["bbox"]),
        "have a bbox that is not four finite numbers x, y, width >= 0, height >= 0",
    )
    masks = read_masks(rows, ground_truth) if iou_type == "segm" else None
    if masks is None:
        boxes = [row["bbox"] for row in rows]
    else:
        boxes = [
            row["bbox"] if "bbox" in row else mask_util.toBbox(mask)
            for row, mask in zip(rows, masks, strict=True)
        ]
    images = ground_truth.index_of_image
    return Detections(
        image_index=np.array([images[row["image_id"]] for row in rows], dtype=np.int64),
        category_index=np.array([categories[row["category_id"]] for row in rows], dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        scores=np.array([row["score"] for row in rows], dtype=np.float64),
        masks=masks,
    )


def complain(
    rows: Sequence[Mapping[str, Any]], wrong: Callable[[Mapping[str, Any]], bool], fault: str
) -> None:
    """Raise ValueError when `wrong` holds for a row: the count, the fault and the first one."""
    numbers = [number for number, row in enumerate(rows) if wrong(row)]
    if numbers:
        first = {key: rows[numbers[0]][key] for key in list(rows[numbers[0]])[:6]}
        raise ValueError(
            f"{len(numbers)} of {len(rows)} detections {fault}; the first is number {numbers[0]}: "
            f"{shorten(json.dumps(first, default=str))}"
        )


def shorten(text: str, limit: int = 200) -> str:
    """The text, cut to a line's length."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_images(rows: Sequence[Mapping[str, Any]], ground_truth: GroundTruth) -> None:
    """Raise ValueError for images that the dataset lacks; most of them: another dataset."""
    known = ground_truth.index_of_image
    images = {row["image_id"] for row in rows}
    if images and len(images & known.keys()) < len(images) / 2:
        raise ValueError(
            f"{len(images - known.keys())} of its {len(images)} images are not in "
            f"{ground_truth.source or 'the dataset'}: these are the results of another dataset or "
            f"split (it has image ids such as {list(known)[:3]}, the results {list(images)[:3]})"
        )
    complain(
        rows,
        lambda row: row["image_id"] not in known,
        f"have an image_id that is none of the dataset's {len(known)}",
    )


def is_finite(value: Any) -> bool:
    """Whether it is a number other than NaN and the infinities."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_box(value: Any) -> bool:
    """Whether it is x, y, width, height."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(map(is_finite, value))
        and value[2] >= 0
        and value[3] >= 0
    )


def read_masks(rows: Sequence[Mapping[str, Any]], ground_truth: GroundTruth) -> np.ndarray:
    """(D,) compressed RLE; ValueError for one that cannot be decoded or is of another size."""
    masks = np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        height, width = ground_truth.image_sizes[ground_truth.index_of_image[row["image_id"]]]
        masks[number] = compressed(row["segmentation"], int(height), int(width))
    numbers = {id(row): number for number, row in enumerate(rows)}
    complain(
        rows,
        lambda row: masks[numbers[id(row)]] is None,
        "have a segmentation that is neither RLE of the image's size nor polygons",
    )
    return masks


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
