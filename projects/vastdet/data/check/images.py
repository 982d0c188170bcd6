# SPDX-License-Identifier: Apache-2.0
"""Checks of the images of a dataset: their entries, and their files, several at once."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.progress import track

from vastdet.data.check import kinds
from vastdet.data.check.report import Report
from vastdet.data.check.source import Dataset, image_path
from vastdet.data.errors import BrokenRecordError, MissingImageError
from vastdet.data.image_io import read_image_size

# So many files are queued at a time, which keeps memory small for millions.
BATCH = 1024

Sizes = tuple[tuple[int, int], tuple[int, int]]


@dataclass
class ImageRepair:
    """What a cleaned copy changes: positions of images to drop, and sizes to write."""

    drop: dict[int, str] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)


def check_entries(
    dataset: Dataset, sizes: np.ndarray, used: np.ndarray, report: Report
) -> ImageRepair:
    """Check ids, file names and recorded sizes of the images.

    Args:
        dataset: the dataset.
        sizes: (I, 2) recorded sizes, NaN where missing.
        used: positions of the images that have annotations, -1 for an unknown one.
        report: gets the findings.
    """
    images = dataset["images"]
    first: dict[object, int] = {}
    files: dict[str, int] = {}
    repeated, listed_twice = [], []
    repair = ImageRepair()
    for index, image in enumerate(images):
        if first.setdefault(image["id"], index) != index:
            repeated.append(_describe(image))
            repair.drop[index] = kinds.IMAGE_ID_DUPLICATE.key
        name = image_path(image, "")
        if name and files.setdefault(name, index) != index and index not in repair.drop:
            listed_twice.append(f"{name}, images {images[files[name]]['id']} and {image['id']}")
    report.add(kinds.IMAGE_ID_DUPLICATE, repeated)
    report.add(kinds.IMAGE_FILE_TWICE, listed_twice)
    unsized = np.flatnonzero(np.isnan(sizes[:, 0]))
    report.add(kinds.IMAGE_WITHOUT_SIZE, [_describe(images[int(index)]) for index in unsized])
    has_boxes = np.zeros(len(images), dtype=bool)
    has_boxes[used[used >= 0]] = True
    report.add(
        kinds.IMAGE_EMPTY, [_describe(images[int(index)]) for index in np.flatnonzero(~has_boxes)]
    )
    return repair


def check_files(
    dataset: Dataset,
    sizes: np.ndarray,
    image_root: str,
    repair: ImageRepair,
    report: Report,
    *,
    workers: int | None,
    progress: bool,
) -> None:
    """Decode every image file and compare its size; adds to `repair` and `report`.

    Raises:
        FileNotFoundError: the folder of the images does not exist.
    """
    # A folder behind a PathManager prefix cannot be asked for in general.
    if image_root and "://" not in image_root and not os.path.isdir(image_root):
        raise FileNotFoundError(
            f"the image folder {image_root} does not exist; give the folder that the file names "
            "are relative to, or check without images"
        )
    images = dataset["images"]
    missing: list[str] = []
    unreadable: list[str] = []
    wrong: list[str] = []
    rotated: list[str] = []
    paths = [image_path(image, image_root) for image in images]
    outcomes = track(
        _outcomes(paths, workers),
        "decoding images",
        total=len(paths),
        console=Console(stderr=True),
        disable=not progress,
    )
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, BrokenRecordError):
            is_missing = isinstance(outcome, MissingImageError)
            (missing if is_missing else unreadable).append(
                f"image {images[index]['id']}: {outcome}"
            )
            kind = kinds.IMAGE_MISSING if is_missing else kinds.IMAGE_UNREADABLE
            repair.drop.setdefault(index, kind.key)
            continue
        upright, stored = outcome
        if upright != stored:
            rotated.append(_describe(images[index]))
        if np.isnan(sizes[index, 0]):
            repair.sizes[index] = upright
        elif tuple(sizes[index]) != upright:
            swapped = " (as before its EXIF rotation)" if tuple(sizes[index]) == stored else ""
            wrong.append(
                f"{_describe(images[index])}{swapped}, the file has {upright[0]}x{upright[1]}"
            )
            repair.drop.setdefault(index, kinds.IMAGE_SIZE_WRONG.key)
    report.num_images_read = len(images) - len(missing) - len(unreadable)
    report.add(kinds.IMAGE_MISSING, missing)
    report.add(kinds.IMAGE_UNREADABLE, unreadable)
    report.add(kinds.IMAGE_SIZE_WRONG, wrong)
    report.add(kinds.IMAGE_ROTATED, rotated)


def _outcomes(paths: list[str | None], workers: int | None) -> Iterator[Sizes | BrokenRecordError]:
    """What came of decoding each file, in order."""
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), BATCH):
            yield from pool.map(_decode, paths[start : start + BATCH])


def _decode(path: str | None) -> Sizes | BrokenRecordError:
    if path is None:
        return MissingImageError("the entry has neither a file_name nor a coco_url")
    try:
        return read_image_size(path)
    except BrokenRecordError as error:
        return error


def _describe(image: dict) -> str:
    name = image.get("file_name") or image.get("coco_url") or "no file name"
    return f"image {image['id']} ({name}), recorded {image.get('width')}x{image.get('height')}"
