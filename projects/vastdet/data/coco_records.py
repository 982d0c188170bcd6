# SPDX-License-Identifier: Apache-2.0
"""Annotation files in COCO's format, and its LVIS, V3Det and Objects365 dialects, as records."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from vastdet.files import read_json, without_garbage_collection
from vastdet.vocabulary import CategorySpace

logger = logging.getLogger(__name__)

Record = dict[str, Any]
# LVIS's lists of categories about an image (arXiv 1908.03195): verified absent, and present but
# not boxed exhaustively.
FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
MAX_NAMED = 5


def load_coco_records(
    json_file: str | Path,
    image_root: str | Path,
    space: CategorySpace,
    *,
    extra_annotation_keys: Sequence[str] = (),
) -> list[Record]:
    """Detectron2 records of an annotation file, sorted by image id; no image is opened.

    A record has file_name, image_id, width, height (pixels) and annotations; these have bbox
    (XYWH_ABS pixels, as in the file), bbox_mode, iscrowd and category_id (contiguous). LVIS's
    neg_category_ids and not_exhaustive_category_ids are carried as contiguous ids. Boxes are not
    judged here: the mapper and tools/check_dataset.py do. Annotations of images that the file
    does not list are counted, reported and left out.

    Args:
        json_file: the annotation file. Without `annotations` (test sets) records have none.
        image_root: folder that file names start from. An image of LVIS, which has no file_name,
            is found by the last two parts of its coco_url, such as val2017/000000000139.jpg.
        space: the categories of the file.
        extra_annotation_keys: further keys to keep as they are, such as "segmentation".

    Raises:
        FileNotFoundError: there is no such annotation file.
        ValueError: not a COCO file, no images, categories other than those of `space`, an image
            without file name or size, two images with one id, annotations of unknown categories.
    """
    document = read_json(json_file)
    return records_of(
        document, image_root, space, json_file, extra_annotation_keys=extra_annotation_keys
    )


def records_of(
    document: Any,
    image_root: str | Path,
    space: CategorySpace,
    json_file: str | Path,
    *,
    extra_annotation_keys: Sequence[str] = (),
) -> list[Record]:
    """As `load_coco_records`, of a document that was read; errors call it `json_file`."""
    _check_lists(document, space, json_file)
    with without_garbage_collection():
        records = _image_records(document["images"], image_root, space, json_file)
        _attach_annotations(
            records, document.get("annotations") or [], space, json_file, extra_annotation_keys
        )
    return [records[image_id] for image_id in sorted(records)]


def _check_lists(document: Any, space: CategorySpace, json_file: str | Path) -> None:
    if not isinstance(document, Mapping):
        raise ValueError(
            f"{json_file} holds a {type(document).__name__}; expected an object with the lists "
            "'images', 'annotations' and 'categories' (COCO format)"
        )
    for key in ("images", "categories"):
        if not isinstance(document.get(key), list) or not document[key]:
            raise ValueError(f"{json_file}: the list '{key}' is empty or missing")
    in_file = {category.get("id") for category in document["categories"]}
    differing = sorted(in_file ^ set(space.dataset_ids))
    if differing:
        raise ValueError(
            f"{json_file} has {len(in_file)} categories, its dataset was registered with "
            f"{len(space)}; ids in only one of them: {differing[:MAX_NAMED]}. If the file has "
            "changed, start again; if it is another file, register it under another name"
        )


def _image_records(
    images: Sequence[Mapping[str, Any]],
    image_root: str | Path,
    space: CategorySpace,
    json_file: str | Path,
) -> dict[Any, Record]:
    records: dict[Any, Record] = {}
    for image in images:
        name = image.get("file_name") or "/".join(image.get("coco_url", "").split("/")[-2:])
        missing = [key for key in ("id", "width", "height") if image.get(key) is None]
        if missing or not name:
            raise ValueError(
                f"{json_file}: image {str(dict(image))[:120]} has no "
                f"{' and no '.join(missing or ['file_name'])}; each image needs id, file_name, "
                "width and height"
            )
        if image["id"] in records:
            raise ValueError(f"{json_file}: image id {image['id']} is given to two images")
        record = {
            "file_name": os.path.join(image_root, name),
            "image_id": image["id"],
            "width": image["width"],
            "height": image["height"],
            "annotations": [],
        }
        for key in FEDERATED_KEYS:
            if key in image:
                record[key] = space.contiguous_ids(image[key]).tolist()
        records[image["id"]] = record
    return records


def _attach_annotations(
    records: Mapping[Any, Record],
    annotations: Sequence[Mapping[str, Any]],
    space: CategorySpace,
    json_file: str | Path,
    extra_keys: Sequence[str],
) -> None:
    contiguous = space.dataset_id_to_contiguous_id
    box_mode = BoxMode.XYWH_ABS
    unknown: Counter[Any] = Counter()
    num_orphans = 0
    for annotation in annotations:
        record = records.get(annotation.get("image_id"))
        category_id = contiguous.get(annotation.get("category_id"))  # type: ignore[arg-type]
        if category_id is None:
            unknown[annotation.get("category_id")] += 1
        elif record is None:
            num_orphans += 1
        else:
            kept = {
                "bbox": annotation.get("bbox", []),
                "bbox_mode": box_mode,
                "category_id": category_id,
                "iscrowd": annotation.get("iscrowd", 0),
            }
            for key in extra_keys:
                if key in annotation:
                    kept[key] = annotation[key]
            record["annotations"].append(kept)
    if unknown:
        raise ValueError(
            f"{json_file}: {sum(unknown.values())} annotations have a category_id that "
            f"'categories' does not list: {list(unknown)[:MAX_NAMED]}; tools/check_dataset.py "
            "lists them, and with --fix writes a copy without them"
        )
    if num_orphans:
        logger.warning(
            f"{json_file}: {num_orphans} of {len(annotations)} annotations belong to no image of "
            "the file and are left out"
        )
