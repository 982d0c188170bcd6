# SPDX-License-Identifier: Apache-2.0
"""Annotation files in COCO's format, and its LVIS, V3Det and Objects365 dialects, as records."""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vastdet.data.record_table import Record, RecordTable, build_table
from vastdet.files import read_json, without_garbage_collection
from vastdet.vocabulary import CategorySpace

logger = logging.getLogger(__name__)

# LVIS's lists of categories about an image (arXiv 1908.03195): verified absent, and present but
# not boxed exhaustively.
FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
MAX_NAMED = 5


def load_coco_table(
    json_file: str | Path,
    image_root: str | Path,
    space: CategorySpace,
    *,
    extra_annotation_keys: Sequence[str] = (),
) -> RecordTable:
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
    return table_of(
        document, image_root, space, json_file, extra_annotation_keys=extra_annotation_keys
    )


def table_of(
    document: Any,
    image_root: str | Path,
    space: CategorySpace,
    json_file: str | Path,
    *,
    extra_annotation_keys: Sequence[str] = (),
) -> RecordTable:
    """As `load_coco_table`, of a document that was read; errors call it `json_file`."""
    _check_lists(document, space, json_file)
    annotations = document.get("annotations") or []
    with without_garbage_collection():
        records = _image_records(document["images"], image_root, space, json_file)
        image_ids = sorted(records)
        return build_table(
            [records[image_id] for image_id in image_ids],
            annotations,
            *_image_and_category(annotations, image_ids, space, json_file),
            extra_keys=extra_annotation_keys,
        )


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
        }
        for key in FEDERATED_KEYS:
            if key in image:
                record[key] = space.contiguous_ids(image[key]).tolist()
        records[image["id"]] = record
    return records


def _image_and_category(
    annotations: Sequence[Mapping[str, Any]],
    image_ids: Sequence[Any],
    space: CategorySpace,
    json_file: str | Path,
) -> tuple[np.ndarray, np.ndarray]:
    """The index in `image_ids` and the contiguous category id of each annotation (A,).

    The index is -1 for annotations of images that the file does not list, which are reported.
    """
    contiguous: Mapping[Any, int] = space.dataset_id_to_contiguous_id
    index_of = {image_id: index for index, image_id in enumerate(image_ids)}
    count = len(annotations)
    dataset_ids = (annotation.get("category_id") for annotation in annotations)
    found = map(contiguous.get, dataset_ids, itertools.repeat(-1))
    categories = np.fromiter(found, np.int32, count)
    if (categories < 0).any():
        rows = np.flatnonzero(categories < 0).tolist()
        unknown = Counter(annotations[row].get("category_id") for row in rows)
        raise ValueError(
            f"{json_file}: {len(rows)} annotations have a category_id that "
            f"'categories' does not list: {list(unknown)[:MAX_NAMED]}; tools/check_dataset.py "
            "lists them, and with --fix writes a copy without them"
        )
    image_of = (annotation.get("image_id") for annotation in annotations)
    image_index = np.fromiter(map(index_of.get, image_of, itertools.repeat(-1)), np.int64, count)
    num_orphans = np.count_nonzero(image_index < 0)
    if num_orphans:
        logger.warning(
            f"{json_file}: {num_orphans} of {count} annotations belong to no image of the file and "
            "are left out"
        )
    return image_index, categories
