# SPDX-License-Identifier: Apache-2.0
"""Panoptic annotations in COCO's format: one segment a pixel, of things and of stuff.

A segment is read as an annotation with a box; its mask is in a PNG beside the annotation file, and
is read with the image.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from vastdet.data.coco_records import table_of
from vastdet.data.errors import BrokenRecordError
from vastdet.data.image_io import read_image
from vastdet.data.record_table import Record
from vastdet.data.register import require_dataset_path
from vastdet.files import read_json
from vastdet.vocabulary import CategorySpace


def panoptic_space(metadata: Metadata) -> CategorySpace:
    """The categories of things and stuff together, from the two mappings of Detectron2's metadata.

    Raises:
        ValueError: the contiguous ids of both are not 0, 1, 2, ... up to the number of
            `stuff_classes`, as they are not in Detectron2's "separated" form.
    """
    mapping = {
        **metadata.thing_dataset_id_to_contiguous_id,
        **metadata.stuff_dataset_id_to_contiguous_id,
    }
    by_contiguous = {contiguous: dataset_id for dataset_id, contiguous in mapping.items()}
    names = metadata.stuff_classes
    if sorted(by_contiguous) != list(range(len(names))):
        raise ValueError(
            f"the contiguous ids of the things and stuff of {metadata.name} are not 0 to "
            f"{len(names) - 1}, each once; register it by register_coco_panoptic of Detectron2"
        )
    return CategorySpace(
        names=tuple(names), dataset_ids=tuple(by_contiguous[k] for k in range(len(names)))
    )


def load_panoptic_records(name: str) -> list[Record]:
    """The records of a panoptic dataset of Detectron2, with annotations; no image is opened.

    As `load_coco_table`; an annotation is a segment, of things or of stuff, and has its `id` in
    the PNG `pan_seg_file_name`.

    Raises:
        FileNotFoundError: the annotation file or a folder does not exist.
        ValueError: as `load_coco_table`, or an image without segments of its own.
    """
    metadata = MetadataCatalog.get(name)
    paths = (metadata.panoptic_json, metadata.image_root, metadata.panoptic_root)
    json_file, image_root, png_root = (
        os.path.expanduser(require_dataset_path(path, name)) for path in paths
    )
    document = read_json(json_file)
    segmented = document.get("annotations") or []
    annotations = [
        {**segment, "image_id": image["image_id"]}
        for image in segmented
        for segment in image["segments_info"]
    ]
    space = panoptic_space(metadata)
    records = list(
        table_of(
            {**document, "annotations": annotations},
            image_root,
            space,
            json_file,
            extra_annotation_keys=("id",),
        )
    )
    files = {image["image_id"]: image["file_name"] for image in segmented}
    for record in records:
        if record["image_id"] not in files:
            raise ValueError(
                f"{json_file}: image {record['image_id']} has no entry in 'annotations'; each "
                "image needs one with file_name and segments_info"
            )
        record["pan_seg_file_name"] = os.path.join(png_root, files[record["image_id"]])
    return records


def with_masks(record: Record, annotations: Sequence[Record]) -> list[Record]:
    """Segments with their masks: `segmentation` in COCO's compressed run lengths.

    Raises:
        BrokenRecordError: the PNG is missing or cannot be read, has another size than the image,
            or lacks a segment.
    """
    path = record["pan_seg_file_name"]
    ids = segment_ids(read_image(path, "RGB"))
    if ids.shape != (record["height"], record["width"]):
        raise BrokenRecordError(
            f"{record['file_name']}: an image of {record['width']}x{record['height']} pixels, but "
            f"{path} has {ids.shape[1]}x{ids.shape[0]}"
        )
    result = []
    for annotation in annotations:
        mask = ids == annotation["id"]
        if not mask.any():
            raise BrokenRecordError(
                f"{record['file_name']}: segment {annotation['id']} is not in {path}"
            )
        encoded: dict[str, Any] = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        result.append({**annotation, "segmentation": encoded})
    return result


def segment_ids(pixels: np.ndarray) -> np.ndarray:
    """Ids (H, W) of the colours (H, W, 3) of a PNG: red + 256 green + 256^2 blue."""
    return pixels.astype(np.int64) @ np.array([1, 256, 256**2])
