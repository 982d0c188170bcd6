# SPDX-License-Identifier: Apache-2.0
"""Generated datasets in the annotation formats of COCO, LVIS v1 and V3Det."""

from __future__ import annotations

from typing import Any

from vastdet.data.generated.splits import GeneratedSplit


def category_dicts(split: GeneratedSplit) -> list[dict[str, Any]]:
    """The categories with every field that a reader of COCO, LVIS or V3Det files may ask for."""
    groups = split.frequency_groups()
    return [
        {
            "id": index + 1,
            "name": composition.name,
            "supercategory": composition.shape,
            "synonyms": [composition.name, *composition.synonyms],
            "def": composition.description,
            "cat_info": composition.description,
            "frequency": groups[index],
            "novel": split.categories.novel[index],
        }
        for index, composition in enumerate(split.categories.compositions)
    ]


def coco_dict(split: GeneratedSplit) -> dict[str, Any]:
    """The whole set as a COCO annotation file: boxes XYWH of the visible extent, pixels."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    size = {"height": split.config.height, "width": split.config.width}
    for index, layout in split.layouts():
        images.append({"id": index + 1, "file_name": f"{index:06d}.ppm", **size})
        for item in layout.objects:
            x0, y0, x1, y1 = item.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": item.category + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": item.area,
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": f"Generated dataset {split.folder}", "version": "1"},
        "images": images,
        "annotations": annotations,
        "categories": category_dicts(split),
    }
