# SPDX-License-Identifier: Apache-2.0
"""Writing a generated dataset to disk: images, annotation files, captions.

The folder holds `images/000000.png`, ..., and `annotations/` with, per format, `coco.json`,
`lvis.json`, or `v3det.json`, `v3det_category_tree.json` and `v3det_category_names.txt`; always
`captions.jsonl` and `referring.jsonl`. Annotation files come last, so a folder that has them is
complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from vastdet.data.generated.export import (
    annotation_dicts,
    assemble,
    caption_dict,
    federated_labels,
    image_dict,
    polygons,
    referring_dicts,
    rle,
)
from vastdet.data.generated.scene import Layout
from vastdet.data.generated.splits import GeneratedSplit
from vastdet.files import write_atomically
from vastdet.vocabulary import frequency_groups

FORMATS = ("coco", "lvis", "v3det")
IMAGE_TYPES = ("png", "jpg")
_ENCODING = {
    "png": [cv2.IMWRITE_PNG_COMPRESSION, 1],
    "jpg": [cv2.IMWRITE_JPEG_QUALITY, 95],
}


@dataclass
class _Collected:
    """What the annotation files are made of, gathered image by image."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    lvis_images: list[dict[str, Any]] = field(default_factory=list)
    lvis_annotations: list[dict[str, Any]] = field(default_factory=list)
    captions: list[dict[str, Any]] = field(default_factory=list)
    expressions: list[dict[str, Any]] = field(default_factory=list)


def _add_image(
    found: _Collected, split: GeneratedSplit, index: int, layout: Layout, file_name: str
) -> None:
    entry = image_dict(split, index, file_name)
    objects = layout.objects
    found.images.append(entry)
    annotations = annotation_dicts(index, objects)
    for position, annotation in enumerate(annotations):
        found.annotations.append({**annotation, "segmentation": rle(layout, position)})

    rng = split.labelling_rngs(index)[1]
    labelled, absent, not_exhaustive = federated_labels(split.categories, objects, rng)
    found.lvis_images.append(
        {
            **entry,
            # LVIS v1 names images by the last two parts of this address.
            "coco_url": f"images/{file_name}",
            "neg_category_ids": [category + 1 for category in absent],
            "not_exhaustive_category_ids": [category + 1 for category in not_exhaustive],
        }
    )
    for position in labelled:
        outline = polygons(layout, position)
        found.lvis_annotations.append({**annotations[position], "segmentation": outline})

    head = {"file_name": file_name, "image_id": index + 1}
    head.update(height=split.config.height, width=split.config.width)
    found.captions.append({**head, **caption_dict(split, objects)})
    found.expressions.extend({**head, **e} for e in referring_dicts(split, index, objects))


def _lvis_file(found: _Collected, split: GeneratedSplit) -> dict[str, Any]:
    """LVIS v1: counts are of the labels in this file, and in a training set so are the groups."""
    size = split.num_categories
    pairs = {(a["image_id"], a["category_id"]) for a in found.lvis_annotations}
    image_counts = np.bincount([c - 1 for _, c in pairs], minlength=size)
    instances = [a["category_id"] - 1 for a in found.lvis_annotations]
    instance_counts = np.bincount(np.array(instances, int), minlength=size)
    is_train = split.split.endswith("train")
    groups = frequency_groups(image_counts) if is_train else split.frequency_groups()
    categories = [
        {
            **category,
            "synset": f"{category['name'].replace(' ', '_')}.n.01",
            # LVIS has no group for a category that no image shows: the rarest one holds it.
            "frequency": groups[index] or "r",
            "image_count": int(image_counts[index]),
            "instance_count": int(instance_counts[index]),
        }
        for index, category in enumerate(split.category_dicts())
    ]
    return assemble(split, found.lvis_images, found.lvis_annotations, categories)


def _json_lines(entries: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def _annotation_files(
    found: _Collected, split: GeneratedSplit, formats: Sequence[str]
) -> dict[str, bytes]:
    """Name and content of every annotation file."""
    files: dict[str, bytes] = {}
    if "coco" in formats:
        coco = assemble(split, found.images, found.annotations, split.category_dicts())
        files["coco.json"] = json.dumps(coco).encode()
    if "lvis" in formats:
        files["lvis.json"] = json.dumps(_lvis_file(found, split)).encode()
    if "v3det" in formats:
        # V3Det's file names start at the dataset's root and its annotations are boxes only.
        images = [{**i, "file_name": f"images/{i['file_name']}"} for i in found.images]
        boxes = [{k: v for k, v in a.items() if k != "segmentation"} for a in found.annotations]
        v3det = assemble(split, images, boxes, split.category_dicts())
        files["v3det.json"] = json.dumps(v3det).encode()
        files["v3det_category_tree.json"] = json.dumps(split.categories.tree()).encode()
        files["v3det_category_names.txt"] = "".join(
            f"{name}\n" for name in split.categories.names
        ).encode()
    files["captions.jsonl"] = _json_lines(found.captions)
    files["referring.jsonl"] = _json_lines(found.expressions)
    return files


def prepare_folder(output: Path, *, overwrite: bool) -> None:
    """Make the output folder; refuse one that holds anything, unless told to overwrite.

    Raises:
        ValueError: the folder is not empty, or the path is a file.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"got the output {output}, which is a file; expected a folder")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ValueError(
            f"got the output folder {output}, which is not empty; expected a new or empty one: "
            "choose another, or pass --overwrite to replace files of the same names"
        )
    for name in ("images", "annotations"):
        (output / name).mkdir(parents=True, exist_ok=True)


def write_dataset(
    split: GeneratedSplit,
    output: Path,
    *,
    formats: Sequence[str] = FORMATS,
    image_type: str = "png",
    overwrite: bool = False,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> list[Path]:
    """Render a set and write its images and annotations.

    Args:
        split: the set.
        output: the folder to write to; see the module's text for what it will hold.
        formats: some of `FORMATS`.
        image_type: "png" (exact pixels) or "jpg" (quality 95).
        overwrite: allow a folder that is not empty; files of other names stay.
        progress: wraps the image numbers; by default a progress bar on the terminal.

    Returns:
        The annotation files.

    Raises:
        ValueError: an unknown format or image type, or an output folder that is not empty.
    """
    unknown = set(formats) - set(FORMATS)
    if unknown or not formats or image_type not in IMAGE_TYPES:
        raise ValueError(
            f"got the formats {list(formats)} and the image type {image_type!r}; "
            f"expected some of {', '.join(FORMATS)} and one of {', '.join(IMAGE_TYPES)}"
        )
    prepare_folder(output, overwrite=overwrite)
    show = progress or (lambda numbers: tqdm(numbers, unit="image", desc="render"))
    found = _Collected()
    for index in show(range(split.num_images)):
        scene = split.render(index)
        file_name = f"{index:06d}.{image_type}"
        bgr = np.ascontiguousarray(scene.image[:, :, ::-1])
        encoded = cv2.imencode(f".{image_type}", bgr, _ENCODING[image_type])[1]
        (output / "images" / file_name).write_bytes(encoded.tobytes())
        _add_image(found, split, index, Layout(scene.objects, scene.instance_ids), file_name)
    written = []
    for name, content in _annotation_files(found, split, formats).items():
        written.append(output / "annotations" / name)
        write_atomically(written[-1], content)
    return written
