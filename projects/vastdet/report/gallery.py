# SPDX-License-Identifier: Apache-2.0
"""Joins a registered dataset with detections: which pictures the page shows, and how well they did.

Boxes are XYXY absolute pixels of the picture as stored.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from torch import Tensor

from vastdet.data import category_space
from vastdet.data.image_io import read_image
from vastdet.files import read_json
from vastdet.report.matching import (
    IGNORED,
    OperatingPoint,
    best_operating_point,
    evenly_spaced,
    match_detections,
    operating_point,
)
from vastdet.report.selection import PictureSelection, RecallCurve, Selections
from vastdet.vocabulary import CategorySpace

MIN_SHOWN_SCORE = 0.05
MAX_SHOWN_DETECTIONS = 60
MAX_DETECTIONS_BYTES = 400_000_000


@dataclass(frozen=True)
class ShownBox:
    """A box with its label; `score` is its own score or, for ground truth, that of its detection.

    A ground-truth box counts as found, and is drawn so, while `score` reaches the threshold;
    0 means that no detection matches it at any threshold.
    """

    xyxy: tuple[float, float, float, float]
    label: str
    score: float
    correct: bool = True


@dataclass(frozen=True)
class Scene:
    """One picture of the gallery: RGB pixels HxWx3 uint8, its boxes, and what was selected."""

    name: str
    pixels: np.ndarray
    ground_truth: list[ShownBox]
    detections: list[ShownBox]
    selection: PictureSelection | None = None


@dataclass(frozen=True)
class Gallery:
    """Pictures of one dataset, and how its detections do at the threshold they are shown with.

    `recall` is that of the selection of categories, for a detector that has one.
    """

    dataset: str
    scenes: list[Scene]
    point: OperatingPoint
    num_images: int
    recall: RecallCurve | None = None


def read_gallery(
    dataset: str,
    detections_file: Path,
    selection_file: Path | None = None,
    *,
    num_pictures: int,
    score_threshold: float | None = None,
) -> Gallery:
    """Join a registered dataset with COCO results, and take pictures evenly spaced over it.

    Args:
        dataset: a name in Detectron2's DatasetCatalog.
        detections_file: list of {"image_id", "category_id" (dataset id), "bbox" XYWH, "score"}.
        selection_file: the selected categories, of a detector that selects.
        num_pictures: at most so many pictures.
        score_threshold: in [0, 1]; by default where F1 over the whole dataset is highest.

    Raises:
        FileNotFoundError: the dataset is not registered in this process, or its files are missing.
        ValueError: the results are not COCO results, of another dataset's categories, or the file
            is too large for a page; the selection is damaged, or of another vocabulary.
    """
    if dataset not in DatasetCatalog:
        raise FileNotFoundError(
            f"dataset {dataset!r} is not registered: use --register NAME JSON IMAGES"
        )
    detections = read_detections(detections_file)
    records = DatasetCatalog.get(dataset)
    space = category_space(dataset)
    selections = None if selection_file is None else Selections(selection_file, space)
    wanted = set(evenly_spaced(len(records), num_pictures))
    scenes, scores, correct, num_objects = [], [], [], 0
    for index, record in enumerate(records):
        joined = join_record(record, detections.get(record["image_id"], []), space)
        counted = joined.matched != IGNORED
        scores.append(joined.scores[counted])
        correct.append(joined.matched[counted] >= 0)
        num_objects += len(joined.gt_boxes)
        labels = joined.gt_classes.tolist()
        if selections is not None:
            selections.add(record["image_id"], labels)
        if index in wanted:
            own = None if selections is None else selections.picture(record["image_id"], labels)
            scenes.append(make_scene(record, joined, space.names, own))
    all_scores = torch.cat([torch.zeros(0), *scores])
    all_correct = torch.cat([torch.zeros(0, dtype=torch.bool), *correct])
    point = None
    if score_threshold is None:
        point = best_operating_point(all_scores, all_correct, num_objects)
    if point is None:
        given = 0.5 if score_threshold is None else score_threshold
        point = operating_point(all_scores, all_correct, num_objects, given)
    recall = None if selections is None else selections.recall_curve()
    return Gallery(dataset, scenes, point, len(records), recall)


@dataclass(frozen=True)
class JoinedRecord:
    """Tensors of one image: G ground-truth boxes (no crowd), D detections, their assignment."""

    gt_boxes: Tensor
    gt_classes: Tensor
    pred_boxes: Tensor
    pred_classes: Tensor
    scores: Tensor
    matched: Tensor


def read_detections(file: Path) -> dict[Any, list[dict[str, Any]]]:
    """Group a COCO results file by image id."""
    if file.stat().st_size > MAX_DETECTIONS_BYTES:
        raise ValueError(f"{file.name} has over {MAX_DETECTIONS_BYTES // 10**6} MB of detections")
    grouped = defaultdict(list)
    for row in read_json(file, advice="evaluate again to rewrite it"):
        if "image_id" not in row or len(row.get("bbox", ())) != 4:
            raise ValueError(
                f"{file.name} is not a COCO results file: expected image_id, category_id, "
                f"bbox (four numbers) and score, got the keys {sorted(row)}"
            )
        grouped[row["image_id"]].append(row)
    return grouped


def join_record(
    record: dict[str, Any],
    detections: list[dict[str, Any]],
    space: CategorySpace,
) -> JoinedRecord:
    """Put the annotations and detections of one image into tensors and match them."""
    plain: list[tuple[list[float], int]] = []
    crowd: list[tuple[list[float], int]] = []
    for annotation in record.get("annotations", ()):
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        (crowd if annotation.get("iscrowd", 0) else plain).append((box, annotation["category_id"]))
    gt_boxes = to_boxes([box for box, _ in plain])
    gt_classes = torch.tensor([c for _, c in plain], dtype=torch.int64)
    pred_boxes = to_boxes(
        [BoxMode.convert(d["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for d in detections]
    )
    classes = [space.to_contiguous(d["category_id"]) for d in detections]
    pred_classes = torch.tensor(classes, dtype=torch.int64)
    scores = torch.tensor([d["score"] for d in detections], dtype=torch.float32)
    matched = match_detections(
        gt_boxes, gt_classes, to_boxes([b for b, _ in crowd]), pred_boxes, pred_classes, scores
    )
    return JoinedRecord(gt_boxes, gt_classes, pred_boxes, pred_classes, scores, matched)


def to_boxes(boxes: Sequence[Sequence[float]]) -> Tensor:
    """An Nx4 float tensor, also for no boxes."""
    return torch.tensor([list(map(float, b)) for b in boxes], dtype=torch.float32).reshape(-1, 4)


def make_scene(
    record: dict[str, Any],
    joined: JoinedRecord,
    names: Sequence[str],
    selection: PictureSelection | None = None,
) -> Scene:
    """Read a record's picture and turn its boxes into what the page shows."""
    found = {
        g: score
        for g, score in zip(joined.matched.tolist(), joined.scores.tolist(), strict=True)
        if g >= 0
    }
    ground_truth = [
        ShownBox(tuple(box), names[c], found.get(g, 0.0))
        for g, (box, c) in enumerate(
            zip(joined.gt_boxes.tolist(), joined.gt_classes.tolist(), strict=True)
        )
    ]
    detections = []
    for d in joined.scores.argsort(descending=True, stable=True).tolist()[:MAX_SHOWN_DETECTIONS]:
        score, match = float(joined.scores[d]), int(joined.matched[d])
        if score >= MIN_SHOWN_SCORE and match != IGNORED:
            box = tuple(joined.pred_boxes[d].tolist())
            detections.append(ShownBox(box, names[int(joined.pred_classes[d])], score, match >= 0))
    pixels = read_image(record["file_name"], format="RGB")
    return Scene(Path(record["file_name"]).name, pixels, ground_truth, detections, selection)
