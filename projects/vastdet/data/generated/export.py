# SPDX-License-Identifier: Apache-2.0
"""Generated datasets in the annotation formats of COCO, LVIS v1 and V3Det, and their texts.

Boxes are XYWH absolute pixels of the visible extent; image ids, annotation ids and category ids
start at 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

from vastdet.data.generated.categories import GeneratedCategories
from vastdet.data.generated.language import caption, referring_expressions
from vastdet.data.generated.scene import Layout, SceneObject
from vastdet.data.generated.splits import GeneratedSplit

# Chances that a category present in an image is not verified there at all (its boxes are left
# out), and that a category with several instances has only some of them labelled.
UNVERIFIED, NOT_EXHAUSTIVE = 0.1, 0.4
# Categories verified to be absent, per image.
NUM_NEGATIVES = 6


def image_dict(split: GeneratedSplit, index: int, file_name: str) -> dict[str, Any]:
    """The entry of one image in `images`."""
    size = {"height": split.config.height, "width": split.config.width}
    return {"id": index + 1, "file_name": file_name, **size}


def xywh(item: SceneObject) -> list[int]:
    """The box of an object in COCO's form."""
    x0, y0, x1, y1 = item.box
    return [x0, y0, x1 - x0, y1 - y0]


def annotation_dicts(index: int, objects: Sequence[SceneObject]) -> list[dict[str, Any]]:
    """The annotations of one image, without ids, which are given out over the whole file."""
    return [
        {
            "image_id": index + 1,
            "category_id": item.category + 1,
            "bbox": xywh(item),
            "area": item.area,
            "iscrowd": 0,
        }
        for item in objects
    ]


def coco_dict(split: GeneratedSplit) -> dict[str, Any]:
    """The whole set as a COCO annotation file with boxes, without rendering it."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, layout in split.layouts():
        images.append(image_dict(split, index, f"{index:06d}.ppm"))
        annotations.extend(annotation_dicts(index, layout.objects))
    return assemble(split, images, annotations, split.category_dicts())


def assemble(
    split: GeneratedSplit,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
) -> dict[str, Any]:
    """An annotation file of the parts; annotations are numbered from 1."""
    return {
        "info": {"description": f"Generated dataset {split.folder}", "version": "1.0"},
        "licenses": [],
        "images": images,
        "annotations": [{"id": i + 1, **entry} for i, entry in enumerate(annotations)],
        "categories": categories,
    }


def rle(layout: Layout, index: int) -> dict[str, Any]:
    """The exact visible mask of an object as COCO's compressed run lengths."""
    mask = np.asfortranarray(layout.instance_ids == index + 1, dtype=np.uint8)
    encoded = mask_util.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def polygons(layout: Layout, index: int) -> list[list[float]]:
    """The visible mask of an object as outer outlines along pixel edges (holes are filled)."""
    x0, y0, x1, y1 = layout.objects[index].box
    mask = (layout.instance_ids[y0:y1, x0:x1] == index + 1).astype(np.uint8)
    # Each pixel becomes 2 x 2, so that outlines through pixel centres lie near the pixel edges.
    doubled = np.kron(mask, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [c[:, 0].astype(np.float64) / 2 + 0.25 + [x0, y0] for c in contours if len(c) >= 3]
    return [np.round(outline, 2).reshape(-1).tolist() for outline in outlines]


def federated_labels(
    categories: GeneratedCategories, objects: Sequence[SceneObject], rng: np.random.Generator
) -> tuple[list[int], list[int], list[int]]:
    """Label an image as LVIS does: only some categories, and not all of them exhaustively.

    Of the categories present, some go unverified (none of their objects is labelled), and some
    of those with several objects have only a part of them labelled (arXiv 1908.03195, section 3).

    Returns:
        Positions of the labelled objects; contiguous ids of the categories verified to be absent;
        contiguous ids of the categories whose labels are incomplete.
    """
    labelled: list[int] = []
    not_exhaustive: list[int] = []
    present = sorted({item.category for item in objects})
    for category in present:
        members = [i for i, item in enumerate(objects) if item.category == category]
        draw = rng.random()
        if draw < UNVERIFIED:
            continue
        if len(members) > 1 and draw < UNVERIFIED + (1 - UNVERIFIED) * NOT_EXHAUSTIVE:
            keep = int(rng.integers(1, len(members)))
            members = sorted(rng.choice(members, keep, replace=False).tolist())
            not_exhaustive.append(category)
        labelled.extend(members)
    negatives = rng.choice(len(categories), min(NUM_NEGATIVES, len(categories)), replace=False)
    absent = sorted(set(negatives.tolist()) - set(present))
    return sorted(labelled), absent, not_exhaustive


def caption_dict(split: GeneratedSplit, objects: Sequence[SceneObject]) -> dict[str, Any]:
    """A caption with the character span, category and boxes of each of its phrases."""
    sentence = caption(split.categories, objects)
    return {
        "caption": sentence.text,
        "regions": [
            {
                "phrase": sentence.text[phrase.start : phrase.stop],
                "tokens_positive": [[phrase.start, phrase.stop]],
                "category_id": phrase.category + 1,
                "category": split.categories.names[phrase.category],
                "boxes": [xywh(objects[i]) for i in phrase.objects],
            }
            for phrase in sentence.phrases
        ],
    }


def referring_dicts(
    split: GeneratedSplit, index: int, objects: Sequence[SceneObject]
) -> list[dict[str, Any]]:
    """The referring expressions of one image, each with its box and that of its anchor."""
    rng = split.labelling_rngs(index)[0]
    return [
        {
            "expression": expression.text,
            "category_id": objects[expression.target].category + 1,
            "box": xywh(objects[expression.target]),
            "qualifier": expression.qualifier,
            "anchor_box": None if expression.anchor is None else xywh(objects[expression.anchor]),
        }
        for expression in referring_expressions(split.config, split.categories, objects, rng)
    ]
