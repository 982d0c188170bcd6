# SPDX-License-Identifier: Apache-2.0
"""Detections of a whole dataset as a few arrays: cheap to keep, to send and to score.

Shapes: D detections.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import BoxMode, Instances

from vastdet.evaluation.ground_truth import GroundTruth


@dataclass(frozen=True)
class Detections:
    """Boxes with scores and categories, and their masks where the model predicts them.

    Attributes:
        image_index: (D,) int64, numbers of `GroundTruth.image_ids`.
        category_index: (D,) int64, contiguous category ids.
        boxes: (D, 4) float64 XYWH absolute pixels of the original image.
        scores: (D,) float64.
        masks: (D,) objects, COCO's compressed RLE {"size": [h, w], "counts": str}, or None.
    """

    image_index: np.ndarray
    category_index: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: np.ndarray) -> "Detections":
        """The detections that a boolean or integer array selects."""
        return Detections(
            image_index=self.image_index[rows],
            category_index=self.category_index[rows],
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            masks=None if self.masks is None else self.masks[rows],
        )

    @staticmethod
    def concatenate(parts: Sequence["Detections"]) -> "Detections":
        """All detections of `parts`, in their order; masks are kept when every part has them."""
        parts = [part for part in parts if len(part)] or list(parts[:1]) or [NO_DETECTIONS]
        columns: dict[str, Any] = {}
        for column in fields(Detections):
            values = [getattr(part, column.name) for part in parts]
            incomplete = any(value is None for value in values)
            columns[column.name] = None if incomplete else np.concatenate(values)
        return Detections(**columns)


NO_DETECTIONS = Detections(
    image_index=np.zeros(0, dtype=np.int64),
    category_index=np.zeros(0, dtype=np.int64),
    boxes=np.zeros((0, 4)),
    scores=np.zeros(0),
)


def from_instances(instances: Instances, image_index: int) -> Detections:
    """Detections of one image from a model's output: pred_boxes XYXY, scores, pred_classes.

    Boxes keep the model's float32 subtraction x2 - x1, as Detectron2's evaluator has it.
    """
    instances = instances.to(torch.device("cpu"))
    boxes = BoxMode.convert(
        instances.pred_boxes.tensor.detach().float(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    )
    masks = encode_masks(instances.pred_masks) if instances.has("pred_masks") else None
    return Detections(
        image_index=np.full(len(instances), image_index, dtype=np.int64),
        category_index=instances.pred_classes.numpy().astype(np.int64),
        boxes=boxes.numpy().astype(np.float64),
        scores=instances.scores.detach().float().numpy().astype(np.float64),
        masks=masks,
    )


def encode_masks(masks: torch.Tensor) -> np.ndarray:
    """(D,) compressed RLE of (D, H, W) boolean masks."""
    encoded = np.empty(len(masks), dtype=object)
    for index, mask in enumerate(masks):
        rle = mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        encoded[index] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return encoded


def pack_masks(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compressed RLEs as arrays, without objects.

    Returns:
        sizes (D, 2) int32 height and width, lengths (D,) int32, and counts (L,) uint8, the RLEs'
        bytes one after the other; L is the sum of the lengths.
    """
    texts = [mask["counts"] for mask in masks]
    counts = [text.encode("ascii") if isinstance(text, str) else text for text in texts]
    return (
        np.array([mask["size"] for mask in masks], dtype=np.int32).reshape(-1, 2),
        np.fromiter(map(len, counts), np.int32, len(counts)),
        np.frombuffer(b"".join(counts), dtype=np.uint8),
    )


def unpack_masks(sizes: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(D,) compressed RLEs from what `pack_masks` returned."""
    masks = np.empty(len(sizes), dtype=object)
    text, start = counts.tobytes().decode("ascii"), 0
    for number, (size, length) in enumerate(zip(sizes.tolist(), lengths.tolist(), strict=True)):
        masks[number] = {"size": size, "counts": text[start : start + length]}
        start += length
    return masks


def to_coco(detections: Detections, ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """COCO's results list, with the dataset's image and category ids."""
    columns: list[Iterable[Any]] = [
        detections.image_index.tolist(),
        detections.category_index.tolist(),
        detections.boxes.tolist(),
        detections.scores.tolist(),
    ]
    results = [
        {
            "image_id": ground_truth.image_ids[image],
            "category_id": ground_truth.space.dataset_ids[category],
            "bbox": box,
            "score": score,
        }
        for image, category, box, score in zip(*columns, strict=True)
    ]
    if detections.masks is not None:
        for result, mask in zip(results, detections.masks, strict=True):
            result["segmentation"] = mask
    return results
