# SPDX-License-Identifier: Apache-2.0
"""COCO's matching and accumulation by hotcoco (fast) or pycocotools (the reference).

Shapes: T IoU thresholds, R recall thresholds, K categories, A area ranges, M detection limits.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pycocotools.mask as mask_util

from vastdet.evaluation.detections import Detections
from vastdet.evaluation.ground_truth import GroundTruth


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


Engine = Callable[[GroundTruth, Detections, str, Sequence[int]], Curves]


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
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"unknown IoU type {iou_type!r}, expected 'bbox' or 'segm'")
    limits = [int(limit) for limit in max_dets]
    if not limits or limits[0] < 1 or limits != sorted(set(limits)):
        raise ValueError(f"got max_dets {list(max_dets)}, expected ascending positive numbers")
    if iou_type == "segm":
        check_masks(ground_truth, detections)
    return ENGINES[engine](ground_truth, detections, iou_type, limits)


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


def images_and_categories(
    ground_truth: GroundTruth,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """COCO's image and category lists with ids counted from 1 (0 means "unmatched" there)."""
    images = [
        {"id": index + 1, "height": int(height), "width": int(width)}
        for index, (height, width) in enumerate(ground_truth.image_sizes)
    ]
    categories = [
        {"id": index + 1, "name": label} for index, label in enumerate(ground_truth.labels)
    ]
    return images, categories


def run_hotcoco(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, max_dets: Sequence[int]
) -> Curves:
    """Curves computed by hotcoco, which visits only pairs of image and category that exist."""
    images, categories = images_and_categories(ground_truth)
    segmented = iou_type == "segm"
    truth = hotcoco.COCO.from_arrays(
        images,
        categories,
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
        np.column_stack(columns).astype(np.float64),
        segmentation=None if masks is None else list(masks),
    )
    if segmented:
        # Loaded with boxes, detections have the boxes' areas; mask AP goes by the masks'.
        numbers = np.arange(1, len(detections) + 1)
        found.update_anns(ids=numbers, area=detection_areas(detections, iou_type))
    evaluation = hotcoco.COCOeval(truth, found, iou_type)
    evaluation.params.max_dets = list(max_dets)
    evaluation.evaluate()
    evaluation.accumulate()
    return curves_of(evaluation.eval, evaluation.params)


def run_pycocotools(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, max_dets: Sequence[int]
) -> Curves:
    """Curves computed by pycocotools, the definition of COCO's metrics."""
    truth = pycocotools_dataset(
        ground_truth, ground_truth, ground_truth.areas, ground_truth.segmentations
    )
    for annotation, crowd in zip(
        truth.dataset["annotations"], ground_truth.is_crowd.tolist(), strict=True
    ):
        annotation["iscrowd"] = int(crowd)
    areas = detection_areas(detections, iou_type)
    found = pycocotools_dataset(ground_truth, detections, areas, detections.masks)
    for annotation, score in zip(
        found.dataset["annotations"], detections.scores.tolist(), strict=True
    ):
        annotation["score"] = score
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = pycocotools.cocoeval.COCOeval(truth, found, iou_type)
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    return curves_of(evaluation.eval, evaluation.params)


def pycocotools_dataset(
    ground_truth: GroundTruth,
    side: GroundTruth | Detections,
    areas: np.ndarray,
    masks: Sequence[Any] | np.ndarray | None,
) -> pycocotools.coco.COCO:
    """Ground truth or detections as an indexed pycocotools dataset."""
    images, categories = images_and_categories(ground_truth)
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
    dataset.dataset = {"images": images, "categories": categories, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
    return dataset


def curves_of(evaluated: Any, params: Any) -> Curves:
    """Curves from what either engine leaves in `COCOeval.eval` and `COCOeval.params`."""
    return Curves(
        precision=np.asarray(evaluated["precision"]),
        recall=np.asarray(evaluated["recall"]),
        scores=np.asarray(evaluated["scores"]),
        iou_thresholds=np.asarray(params.iouThrs),
        recall_thresholds=np.asarray(params.recThrs),
        area_labels=tuple(params.areaRngLbl),
        max_dets=tuple(params.maxDets),
    )


ENGINES: dict[str, Engine] = {"hotcoco": run_hotcoco, "pycocotools": run_pycocotools}
