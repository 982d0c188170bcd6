# SPDX-License-Identifier: Apache-2.0
"""Results files of plain arrays (.npz), for sets whose results are too many for JSON.

A file has one row a detection in these columns, which `numpy.load` reads by itself:

    image_id      ids of the dataset, integers or text
    category_id   ids of the dataset
    boxes         (D, 4) XYWH absolute pixels of the original image
    scores        (D,)
    mask_sizes    (D, 2) height and width, mask_lengths (D,), and mask_counts, the bytes of all
                  compressed RLEs one after the other; these three only where there are masks

Boxes and scores are float32 where that loses nothing, as with everything that a model predicts
here, and float64 otherwise (results that came from JSON): a file scores the same, bit for bit, as
the detections that were written. A header, JSON, says which dataset the results are of.

Shapes: D detections.
"""

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vastdet.evaluation.detections import Detections, pack_masks, unpack_masks
from vastdet.evaluation.faults import UNKNOWN, Faults
from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.files import local_path, write_atomically

FORMAT = "vastdet.Detections"
VERSION = 1
COLUMNS = {"image_id": "iuU", "category_id": "iu", "boxes": "f", "scores": "f"}  # kinds of dtype
MASK_COLUMNS = {"mask_sizes": "iu", "mask_lengths": "iu", "mask_counts": "u"}


def fingerprint(ground_truth: GroundTruth) -> str:
    """A hash of the dataset's image and category ids, which tells datasets and splits apart."""
    ids = [list(ground_truth.image_ids), sorted(map(int, ground_truth.space.dataset_ids))]
    return hashlib.sha256(json.dumps(ids).encode("utf-8")).hexdigest()[:32]


def write_store(
    path: str | Path, detections: Detections, ground_truth: GroundTruth, *, dataset: str
) -> None:
    """Write detections of the dataset called `dataset` into a .npz file, whole or not at all.

    Raises:
        ValueError: the dataset has both integers and texts for image ids, which no column holds.
    """
    kinds = sorted({type(image_id).__name__ for image_id in ground_truth.image_ids})
    if len(kinds) > 1:
        raise ValueError(
            f"{dataset} has image ids of the types {' and '.join(kinds)}; a .npz results file "
            "needs all of one type: write the results as JSON, or make the ids alike"
        )
    header = {
        "format": FORMAT,
        "version": VERSION,
        "dataset": dataset,
        "num_images": len(ground_truth.image_ids),
        "num_categories": ground_truth.num_categories,
        "fingerprint": fingerprint(ground_truth),
    }
    image_ids = narrow(np.array(ground_truth.image_ids or [0]))
    category_ids = narrow(np.array(ground_truth.space.dataset_ids, dtype=np.int64))
    columns = {
        "header": np.array(json.dumps(header)),
        "image_id": image_ids[detections.image_index],
        "category_id": category_ids[detections.category_index],
        "boxes": narrow(detections.boxes),
        "scores": narrow(detections.scores),
    }
    if detections.masks is not None:
        columns |= dict(zip(MASK_COLUMNS, pack_masks(detections.masks), strict=True))
    write_atomically(path, lambda file: np.savez(file, **columns))


def narrow(values: np.ndarray) -> np.ndarray:
    """Numbers in 32 bits each where that loses nothing, else as they are."""
    if values.dtype.kind not in "if":
        return values
    smaller = values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
    return smaller if np.array_equal(smaller, values) else values


def is_store(path: str | Path) -> bool:
    """Whether an existing file is a .npz (a ZIP archive), by its first bytes."""
    with local_path(path).open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_store(
    path: str | Path, ground_truth: GroundTruth, *, iou_type: str = "bbox"
) -> Detections:
    """Detections of a .npz results file; masks are read for the IoU type "segm" alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is damaged, that `write_store` did not write, of a newer version,
            of another dataset, without the masks that are asked for, or with rows that cannot be
            scored; of those the message names the first and the count.
    """
    masked = iou_type == "segm"
    columns = load_columns(path, ground_truth, COLUMNS | (MASK_COLUMNS if masked else {}))
    faults = Faults(ground_truth, iou_type=iou_type)
    image_index, category_index = index_columns(columns, faults)
    boxes, scores = columns["boxes"], columns["scores"]
    wrong = {
        "image_id": image_index == UNKNOWN,
        "category_id": category_index == UNKNOWN,
        "score": ~np.isfinite(scores),
        "bbox": ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= 0).all(axis=1)),
    }
    if masked:
        sizes = ground_truth.image_sizes[image_index]
        wrong["segmentation"] = (columns["mask_sizes"] != sizes).any(axis=1)

    def row(number: int) -> dict[str, Any]:
        return {name: columns[name][number].tolist() for name in COLUMNS}

    for fault, mask in wrong.items():
        faults.add(fault, np.flatnonzero(mask).tolist(), row)
    try:
        faults.complain(len(scores))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Detections(
        image_index=image_index,
        category_index=category_index,
        boxes=boxes.astype(np.float64),
        scores=scores.astype(np.float64),
        masks=unpack_masks(*(columns[name] for name in MASK_COLUMNS)) if masked else None,
    )


def index_columns(columns: dict[str, np.ndarray], faults: Faults) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of images and categories, each distinct id being looked up once."""
    image_ids, image_of_row = np.unique(columns["image_id"], return_inverse=True)
    category_ids, category_of_row = np.unique(columns["category_id"], return_inverse=True)
    return (
        faults.index_of_images(image_ids.tolist())[image_of_row],
        faults.index_of_categories(category_ids.tolist())[category_of_row],
    )


def load_columns(
    path: str | Path, ground_truth: GroundTruth, wanted: dict[str, str]
) -> dict[str, np.ndarray]:
    """The wanted columns (name to kinds of dtype) of a .npz that holds results of the dataset."""
    try:
        with np.load(local_path(path), allow_pickle=False) as archive:
            names = {"header", *wanted} & set(archive.files)
            columns = {name: archive[name] for name in names}
        header = json.loads(str(columns.pop("header"))) if "header" in columns else None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}; write it again") from error
    check_header(path, header, ground_truth)
    missing = [name for name in wanted if name not in columns]
    if missing:
        no_masks = missing == list(MASK_COLUMNS)
        advice = "score it by the IoU type bbox" if no_masks else "write it again"
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; {advice}")
    check_columns(path, columns, wanted)
    return columns


def check_header(path: str | Path, header: Any, ground_truth: GroundTruth) -> None:
    """Raise ValueError for a file of another format, version or dataset."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a .npz file, but no results file of vastdet (format {FORMAT!r}); COCO "
            "results are read as JSON"
        )
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {header.get('version')!r}, this vastdet reads {VERSION}; update "
            "vastdet, or write the results again"
        )
    if header.get("fingerprint") != fingerprint(ground_truth):
        sizes = f"{header.get('num_images')} images, {header.get('num_categories')} categories"
        raise ValueError(
            f"{path} holds results of {header.get('dataset')} ({sizes}), not of "
            f"{ground_truth.source or 'the dataset'} ({len(ground_truth.image_ids)} images, "
            f"{ground_truth.num_categories} categories): their image or category ids differ. Score "
            "it on the dataset that it was written for"
        )


def check_columns(path: str | Path, columns: dict[str, np.ndarray], kinds: dict[str, str]) -> None:
    """Raise ValueError for columns of a wrong type or shape, or of unequal lengths."""
    rows = columns["scores"].shape[0] if columns["scores"].ndim else 0
    masks = int(columns["mask_lengths"].sum()) if "mask_lengths" in columns else 0
    shapes = {"boxes": (rows, 4), "mask_sizes": (rows, 2), "mask_counts": (masks,)}
    for name in dict.fromkeys(("scores", *columns)):
        column = columns[name]
        expected = shapes.get(name, (rows,))
        if column.shape != expected or column.dtype.kind not in kinds[name]:
            raise ValueError(
                f"{path} is damaged: the column {name} is {column.dtype} of shape {column.shape}, "
                f"expected the shape {expected} and a dtype of kind {' or '.join(kinds[name])}; "
                "write it again"
            )
