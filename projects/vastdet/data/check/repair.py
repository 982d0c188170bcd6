# SPDX-License-Identifier: Apache-2.0
"""A cleaned copy of a checked dataset."""

from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from vastdet.data.check.annotations import AnnotationRepair, Columns
from vastdet.data.check.images import ImageRepair
from vastdet.data.check.source import Dataset


@dataclass
class Repair:
    """Everything that a cleaned copy changes.

    Attributes:
        annotations: masks over the annotations.
        images: positions of images to drop, and sizes to write.
        drop_categories: positions of categories to drop.
        columns: the annotations as arrays.
        rewrite_boxes: whether every box is written anew, because the input's are XYXY.
    """

    annotations: AnnotationRepair
    images: ImageRepair
    drop_categories: set[int]
    columns: Columns
    rewrite_boxes: bool


def repaired(dataset: Dataset, repair: Repair) -> tuple[Dataset, list[str]]:
    """A cleaned copy of `dataset`, which stays as it is, and what was done in words."""
    images = []
    for index, image in enumerate(dataset["images"]):
        if index in repair.images.sizes:
            width, height = repair.images.sizes[index]
            image = {**image, "width": width, "height": height}
        if index not in repair.images.drop:
            images.append(image)
    categories = [
        category
        for index, category in enumerate(dataset["categories"])
        if index not in repair.drop_categories
    ]
    annotations, with_images = _annotations(dataset["annotations"], repair)
    copy = {**dataset, "images": images, "annotations": annotations, "categories": categories}
    return copy, _in_words(repair, with_images)


def _annotations(given: list[dict[str, Any]], repair: Repair) -> tuple[list[dict[str, Any]], int]:
    """The kept annotations, and how many went with their images."""
    columns, mend = repair.columns, repair.annotations
    gone = np.fromiter(repair.images.drop, dtype=np.int64, count=len(repair.images.drop))
    lost = np.isin(columns.image, gone) & ~mend.drop
    rewrite = mend.clip | repair.rewrite_boxes
    boxes = np.where(mend.clip[:, None], columns.clipped, columns.boxes)
    numbers = count(max((a["id"] for a in given if isinstance(a.get("id"), int)), default=0) + 1)
    kept = []
    for index in np.flatnonzero(~mend.drop & ~lost).tolist():
        annotation = given[index]
        if rewrite[index]:
            x1, y1, x2, y2 = boxes[index].tolist()
            annotation = {**annotation, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            if not annotation.get("segmentation"):
                annotation["area"] = (x2 - x1) * (y2 - y1)
        if mend.renumber[index]:
            annotation = {**annotation, "id": next(numbers)}
        kept.append(annotation)
    return kept, int(lost.sum())


def _in_words(repair: Repair, with_images: int) -> list[str]:
    mend = repair.annotations
    stays = ~mend.drop
    counts = [
        *((number, f"boxes dropped: {key}") for key, number in mend.dropped_by.items()),
        *(
            (number, f"images dropped: {key}")
            for key, number in Counter(repair.images.drop.values()).items()
        ),
        (with_images, "boxes dropped with their images"),
        (len(repair.drop_categories), "categories dropped: duplicate id"),
        (int((mend.clip & stays).sum()), "boxes clipped to their images"),
        (int((mend.renumber & stays).sum()), "annotations renumbered"),
        (len(repair.images.sizes), "image sizes written"),
        (len(mend.drop) * repair.rewrite_boxes, "boxes rewritten from XYXY to XYWH"),
    ]
    return [f"{number:,} {what}" for number, what in counts if number]
