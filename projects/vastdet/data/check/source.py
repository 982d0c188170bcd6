# SPDX-License-Identifier: Apache-2.0
"""What a data check reads: a COCO-format file, or records of a registered dataset."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from vastdet.data.register import require_registered
from vastdet.files import read_json

SECTIONS = ("images", "annotations", "categories")

Dataset = dict[str, Any]


def load_dataset(source: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Dataset:
    """A dataset as COCO's dict of images, annotations and categories.

    Args:
        source: a COCO-, LVIS- or V3Det-format file or its content, or Detectron2 records.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file.
    """
    if isinstance(source, str | Path):
        where = str(source)
        content = read_json(source)
    else:
        where = "the given dataset"
        content = source if isinstance(source, Mapping) else from_records(source)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{where} holds a {type(content).__name__}; expected a COCO-format object with "
            f"{', '.join(SECTIONS)}"
        )
    for section in SECTIONS:
        entries = content.get(section)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ValueError(
                f"{where} has no list of objects under {section!r}; is it COCO format?"
            )
    for section in ("images", "categories"):
        for index, entry in enumerate(content[section]):
            if not isinstance(entry.get("id"), int | str):
                raise ValueError(f"{where}: entry no. {index} of {section!r} has no id: {entry}")
    for key in ("id", "image_id", "category_id"):
        for annotation in content["annotations"]:
            if isinstance(annotation.get(key), list | dict):
                raise ValueError(f"{where}: {key} must be a number or text in {annotation}")
    return dict(content)


def from_registered(name: str) -> tuple[Dataset, str]:
    """A registered dataset and the folder of its images, from its file where it has one.

    Raises:
        ValueError: there is no dataset of this name.
        FileNotFoundError: its file is missing.
    """
    require_registered(name)
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file is not None:
        return load_dataset(json_file), metadata.get("image_root") or ""
    records = DatasetCatalog.get(name)
    return from_records(records, metadata.get("thing_classes")), ""


def from_records(
    records: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None
) -> Dataset:
    """COCO's form of Detectron2 records; category ids are the contiguous ones.

    Without `names`, the categories are those that occur.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, record in enumerate(records):
        image = {"id": record.get("image_id", index), "file_name": record["file_name"]}
        image.update({key: record[key] for key in ("width", "height") if key in record})
        images.append(image)
        for given in record.get("annotations", ()):
            annotation = {
                "id": len(annotations) + 1,
                "iscrowd": 0,
                **given,
                "image_id": image["id"],
            }
            box = [float(number) for number in annotation.get("bbox", ())]
            mode = BoxMode(annotation.pop("bbox_mode", BoxMode.XYWH_ABS))
            if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
                raise ValueError(
                    f"boxes of mode {mode.name} cannot be checked, only those of XYXY_ABS and "
                    f"XYWH_ABS: {given}"
                )
            if mode == BoxMode.XYXY_ABS and len(box) == 4:
                box[2:] = [box[2] - box[0], box[3] - box[1]]
            annotation["bbox"] = box
            annotations.append(annotation)
    if names is None:
        names = [
            str(i) for i in range(max((a["category_id"] for a in annotations), default=-1) + 1)
        ]
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def image_path(image: Mapping[str, Any], image_root: str) -> str | None:
    """The file of an entry of `images`; None if the entry names none.

    LVIS v1 names no file: its pictures lie in COCO's folders, as the last two parts of `coco_url`.
    """
    name = image.get("file_name")
    if not name and image.get("coco_url"):
        name = "/".join(str(image["coco_url"]).split("/")[-2:])
    return os.path.join(image_root, str(name)) if name else None
