# SPDX-License-Identifier: Apache-2.0
"""COCO's matching and accumulation by hotcoco (fast) or pycocotools (the reference).

Categories are matched independently of each other, so they are handled in blocks: what an engine
keeps of a block is gone before the next one starts. Categories without a counted box have no AP,
and their detections are never looked at.

Shapes: T IoU thresholds, R recall thresholds, K categories, A area ranges, M detection limits.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pycocotools.mask as mask_util

from vastdet.evaluation.detections import Detections
from vastdet.evaluation.ground_truth import FEDERATED_KEYS, GroundTruth

# What an engine gets at a time, about: memory grows with it, the time hardly falls.
BLOCK_CATEGORIES = 2048
BLOCK_DETECTIONS = 2_000_000


@dataclass(frozen=True)
class Curves:
    """Precision and recall as COCO accumulates them; -1 where a category has no ground truth.

    Attributes:
        precision: (T, R, K, A, M) float64 in [0, 1].
        recall: (T, K, A, M) float64 in [0, 1], at the end of the curve.
        scores: (T, R, K, A, M) float64, the score at which a recall is reached.
        iou_thresholds: (T,).
        recall_thresholds: (R,).
        area_labels: (A,) "all", "small", "medium", "large".
        max_dets: (M,) ascending.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    iou_thresholds: np.ndarray
    recall_thresholds: np.ndarray
    area_labels: tuple[str, ...]
    max_dets: tuple[int, ...]


# Matches the rows of both sides, all of which belong to the given categories (ascending contiguous
# ids), and returns COCO's arrays "precision", "recall" and "scores" of these categories alone.
Engine = Callable[[GroundTruth, Detections, np.ndarray, str, Sequence[int]], Mapping[str, Any]]


def accumulate(
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    engine: str = "hotcoco",
    iou_type: str = "bbox",
    max_dets: Sequence[int] = (1, 10, 100),
) -> Curves:
    """Match detections to ground truth, category by category, and accumulate COCO's curves.

    Raises ValueError for an unknown engine or IoU type, for limits that are not ascending positive
    numbers, and for "segm" without masks.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown COCO engine {engine!r}, expected one of {sorted(ENGINES)}")
    limits = [int(limit) for limit in max_dets]
    if not limits or limits[0] < 1 or limits != sorted(set(limits)):
        raise ValueError(f"got max_dets {list(max_dets)}, expected ascending positive numbers")
    curves = empty_curves(ground_truth.num_categories, limits)
    fill(curves, ground_truth, detections, run=ENGINES[engine], iou_type=iou_type)
    return curves


def accumulate_federated(
    ground_truth: GroundTruth, detections: Detections, *, iou_type: str = "bbox", limit: int
) -> Curves:
    """Curves by LVIS's rules (arXiv 1908.03195) of detections that are few enough already.

    Detections of a category in an image where nobody looked for it are left out; where its labels
    are not complete, those that match nothing are ignored. `limit`, which chose the detections, is
    only kept in the curves. Raises ValueError as `fill` does.
    """
    curves = empty_curves(ground_truth.num_categories, [limit])
    fill(curves, ground_truth, detections, run=run_federated, iou_type=iou_type)
    return curves


def empty_curves(num_categories: int, max_dets: Sequence[int]) -> Curves:
    """Curves of COCO's thresholds and area ranges in which no category has ground truth."""
    params = pycocotools.cocoeval.Params("bbox")
    sizes = (num_categories, len(params.areaRngLbl), len(max_dets))
    steps = (len(params.iouThrs), len(params.recThrs))
    return Curves(
        precision=np.full((*steps, *sizes), -1.0),
        recall=np.full((steps[0], *sizes), -1.0),
        scores=np.full((*steps, *sizes), -1.0),
        iou_thresholds=params.iouThrs,
        recall_thresholds=params.recThrs,
        area_labels=tuple(params.areaRngLbl),
        max_dets=tuple(max_dets),
    )


def fill(
    curves: Curves,
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    run: Engine,
    iou_type: str,
    categories: np.ndarray | None = None,
) -> None:
    """Write the curves of some categories into `curves`, in place.

    `categories` are ascending contiguous ids, by default all that have a counted (not crowd) box.
    Raises ValueError for an unknown IoU type and for "segm" without masks.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"unknown IoU type {iou_type!r}, expected 'bbox' or 'segm'")
    if iou_type == "segm":
        check_masks(ground_truth, detections)
    if categories is None:
        categories = np.unique(ground_truth.category_index[~ground_truth.is_crowd])
    num_blocks = 1 + max(len(categories) // BLOCK_CATEGORIES, len(detections) // BLOCK_DETECTIONS)
    blocks = np.array_split(categories, num_blocks)
    block_of = np.full(ground_truth.num_categories, -1, dtype=np.int32)
    for number, block in enumerate(blocks):
        block_of[block] = number
    truth_block = block_of[ground_truth.category_index]
    found_block = block_of[detections.category_index]
    for number, block in enumerate(blocks):
        if not block.size:
            continue
        part = run(
            ground_truth.take(np.flatnonzero(truth_block == number)),
            detections[np.flatnonzero(found_block == number)],
            block,
            iou_type,
            curves.max_dets,
        )
        curves.precision[:, :, block] = part["precision"]
        curves.recall[:, block] = part["recall"]
        curves.scores[:, :, block] = part["scores"]


def check_masks(ground_truth: GroundTruth, detections: Detections) -> None:
    """Raise ValueError unless every annotation and every detection has a mask."""
    masks = ground_truth.segmentations or [None] * len(ground_truth.boxes)
    missing = sum(mask is None for mask in masks)
    if missing:
        raise ValueError(
            f"{missing} of {len(masks)} annotations of {ground_truth.source or 'the ground truth'} "
            "have no segmentation, so mask AP cannot be computed; use the IoU type bbox"
        )
    if len(detections) and detections.masks is None:
        raise ValueError(
            "the detections have no segmentation, so mask AP cannot be computed; use the IoU "
            "type bbox"
        )


def detection_areas(detections: Detections, iou_type: str) -> np.ndarray:
    """(D,) areas that decide the size range: of the mask for segm, of the box otherwise."""
    if iou_type == "bbox" or not len(detections):
        return detections.boxes[:, 2] * detections.boxes[:, 3]
    assert detections.masks is not None
    # One mask a call: pycocotools 2.0.11 overflows on lists of more than 255 with numpy 2.
    return np.array([mask_util.area(mask) for mask in detections.masks], dtype=np.float64)


def image_list(ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """COCO's image list with ids counted from 1 (0 means "unmatched" there)."""
    return [
        {"id": index + 1, "height": height, "width": width}
        for index, (height, width) in enumerate(ground_truth.image_sizes.tolist())
    ]


def category_list(ground_truth: GroundTruth, categories: np.ndarray) -> list[dict[str, Any]]:
    """COCO's category list with ids counted from 1."""
    return [{"id": k + 1, "name": ground_truth.labels[k]} for k in categories.tolist()]


def run_hotcoco(
    ground_truth: GroundTruth,
    detections: Detections,
    categories: np.ndarray,
    iou_type: str,
    max_dets: Sequence[int],
) -> Mapping[str, Any]:
    """Curves computed by hotcoco, which visits only pairs of image and category that exist."""
    images = image_list(ground_truth)
    truth, found = hotcoco_datasets(ground_truth, detections, categories, iou_type, images=images)
    evaluation = hotcoco.COCOeval(truth, found, iou_type)
    return evaluated(evaluation, max_dets)


def run_federated(
    ground_truth: GroundTruth,
    detections: Detections,
    categories: np.ndarray,
    iou_type: str,
    max_dets: Sequence[int],
) -> Mapping[str, Any]:
    """As `run_hotcoco` by LVIS's rules, and without a limit: any was applied to all categories."""
    images = image_list(ground_truth)
    for key, pairs in zip(
        FEDERATED_KEYS, (ground_truth.absent, ground_truth.incomplete), strict=True
    ):
        for image in images:
            image[key] = []
        if pairs is not None:
            for number, category in pairs[np.isin(pairs[:, 1], categories)].tolist():
                images[number][key].append(category + 1)
    truth, found = hotcoco_datasets(ground_truth, detections, categories, iou_type, images=images)
    evaluation = hotcoco.COCOeval(truth, found, iou_type, lvis_style=True)
    return evaluated(evaluation, [len(detections) + 1])


def hotcoco_datasets(
    ground_truth: GroundTruth,
    detections: Detections,
    categories: np.ndarray,
    iou_type: str,
    *,
    images: list[dict[str, Any]],
) -> tuple[hotcoco.COCO, hotcoco.COCO]:
    """Both sides as hotcoco's datasets."""
    segmented = iou_type == "segm"
    truth = hotcoco.COCO.from_arrays(
        images,
        category_list(ground_truth, categories),
        ground_truth.image_index + 1,
        ground_truth.category_index + 1,
        ground_truth.boxes,
        area=ground_truth.areas,
        iscrowd=ground_truth.is_crowd,
        segmentation=ground_truth.segmentations if segmented else None,
    )
    columns = (
        detections.image_index + 1,
        detections.boxes,
        detections.scores,
        detections.category_index + 1,
    )
    masks = detections.masks if segmented else None
    found = truth.load_res(
        np.column_stack(columns).astype(np.float64, copy=False),
        segmentation=None if masks is None else list(masks),
    )
    if segmented:
        # Loaded with boxes, detections have the boxes' areas; mask AP goes by the masks'.
        numbers = np.arange(1, len(detections) + 1)
        found.update_anns(ids=numbers, area=detection_areas(detections, iou_type))
    return truth, found


def evaluated(evaluation: Any, max_dets: Sequence[int]) -> Mapping[str, Any]:
    """COCO's arrays of hotcoco's or pycocotools's COCOeval, at these limits."""
    evaluation.params.maxDets = list(max_dets)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def run_pycocotools(
    ground_truth: GroundTruth,
    detections: Detections,
    categories: np.ndarray,
    iou_type: str,
    max_dets: Sequence[int],
) -> Mapping[str, Any]:
    """Curves computed by pycocotools, the definition of COCO's metrics."""
    truth = pycocotools_dataset(
        ground_truth, ground_truth, categories, ground_truth.areas, ground_truth.segmentations
    )
    for annotation, crowd in zip(
        truth.dataset["annotations"], ground_truth.is_crowd.tolist(), strict=True
    ):
        annotation["iscrowd"] = int(crowd)
    areas = detection_areas(detections, iou_type)
    found = pycocotools_dataset(ground_truth, detections, categories, areas, detections.masks)
    for annotation, score in zip(
        found.dataset["annotations"], detections.scores.tolist(), strict=True
    ):
        annotation["score"] = score
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluated(pycocotools.cocoeval.COCOeval(truth, found, iou_type), max_dets)


def pycocotools_dataset(
    ground_truth: GroundTruth,
    side: GroundTruth | Detections,
    categories: np.ndarray,
    areas: np.ndarray,
    masks: Sequence[Any] | np.ndarray | None,
) -> pycocotools.coco.COCO:
    """Ground truth or detections as an indexed pycocotools dataset."""
    annotations = [
        {
            "id": number + 1,
            "image_id": image + 1,
            "category_id": category + 1,
            "bbox": box,
            "area": area,
            "iscrowd": 0,
        }
        for number, (image, category, box, area) in enumerate(
            zip(
                side.image_index.tolist(),
                side.category_index.tolist(),
                side.boxes.tolist(),
                areas.tolist(),
                strict=True,
            )
        )
    ]
    if masks is not None:
        for annotation, mask in zip(annotations, masks, strict=True):
            annotation["segmentation"] = mask
    dataset = pycocotools.coco.COCO()
    dataset.dataset = {
        "images": image_list(ground_truth),
        "categories": category_list(ground_truth, categories),
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
    return dataset


ENGINES: dict[str, Engine] = {"hotcoco": run_hotcoco, "pycocotools": run_pycocotools}
