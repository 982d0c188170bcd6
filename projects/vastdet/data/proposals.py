# SPDX-License-Identifier: Apache-2.0
"""Precomputed proposals: a safe file format, Detectron2's, and their recall.

Detectron2 keeps proposals in pickles, which run code when they are read. Ours are .npz archives of
plain arrays; `export_detectron2` writes a pickle for a plain Detectron2.

Letters: I images, N_i proposals of image i, G ground-truth boxes. Boxes are XYXY absolute pixels of
the upright original image.
"""

import pickle
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.structures import Boxes, BoxMode, pairwise_iou

from vastdet.files import write_atomically

FIELDS = ("image_ids", "counts", "boxes", "objectness_logits")


@dataclass(frozen=True)
class ImageProposals:
    """Proposals of one image.

    Attributes:
        image_id: the record's image_id, as a string (as Detectron2 compares them).
        boxes: [N, 4] float32.
        objectness_logits: [N] float32, only their order matters.
    """

    image_id: str
    boxes: np.ndarray
    objectness_logits: np.ndarray


def check_file_name(path: str | Path) -> None:
    """Raise ValueError unless the name of a proposal file to be written ends in .npz."""
    if Path(path).suffix != ".npz":
        raise ValueError(f"proposals are stored as .npz, got the name {path}")


def save_proposals(path: str | Path, proposals: Sequence[ImageProposals]) -> None:
    """Write proposals to an .npz file, atomically.

    Raises:
        ValueError: the name does not end in .npz.
    """
    check_file_name(path)
    empty_boxes, empty_logits = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    arrays: dict[str, Any] = {
        "image_ids": np.array([p.image_id for p in proposals], dtype=np.str_),
        "counts": np.array([len(p.boxes) for p in proposals], dtype=np.int64),
        "boxes": np.concatenate([empty_boxes, *(p.boxes for p in proposals)], dtype=np.float32),
        "objectness_logits": np.concatenate(
            [empty_logits, *(p.objectness_logits for p in proposals)], dtype=np.float32
        ),
    }
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def read_proposals(path: str | Path) -> list[ImageProposals]:
    """Read the proposals of an .npz file; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a pickle, damaged, or no proposal file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no proposal file {path}; tools/compute_proposals.py writes one"
        )
    if path.suffix != ".npz":
        raise ValueError(
            f"{path} is no .npz file. Detectron2's .pkl proposals are pickles, which can run code "
            "while they are read; compute proposals with tools/compute_proposals.py"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {field: archive[field] for field in FIELDS}
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as proposals ({error}); expected the arrays {', '.join(FIELDS)}"
        ) from error
    ids, counts = arrays["image_ids"], arrays["counts"]
    boxes, logits = arrays["boxes"], arrays["objectness_logits"]
    if len(ids) != len(counts) or boxes.shape != (counts.sum(), 4) or len(logits) != len(boxes):
        raise ValueError(
            f"{path} is inconsistent: {len(ids)} image ids, {len(counts)} counts of "
            f"{counts.sum()} boxes in all, boxes {boxes.shape}, {len(logits)} logits"
        )
    ends = np.cumsum(counts)[:-1]
    parts = zip(ids, np.split(boxes, ends), np.split(logits, ends), strict=False)
    return [ImageProposals(str(i), b, s) for i, b, s in parts]


def load_proposals(records: Iterable[dict[str, Any]], path: str | Path) -> list[dict[str, Any]]:
    """Add the proposals of a file to dataset records, for the mapper to read.

    The safe twin of `detectron2.data.build.load_proposals_into_dataset`: it sets `proposal_boxes`,
    `proposal_objectness_logits` (highest first) and `proposal_bbox_mode`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or has no entry for one of the records.
    """
    by_id = {p.image_id: p for p in read_proposals(path)}
    records = list(records)
    absent = [r for r in records if str(r["image_id"]) not in by_id]
    if absent:
        raise ValueError(
            f"{path} has no proposals for {len(absent)} of {len(records)} images, the first with "
            f"image_id {absent[0]['image_id']!r}; it was computed for another dataset, or stopped "
            "early: run tools/compute_proposals.py for this dataset"
        )
    for record in records:
        proposals = by_id[str(record["image_id"])]
        order = np.argsort(-proposals.objectness_logits, kind="stable")
        record["proposal_boxes"] = proposals.boxes[order]
        record["proposal_objectness_logits"] = proposals.objectness_logits[order]
        record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    return records


def records_with_proposals(
    names: Sequence[str], files: Sequence[str], **filters: Any
) -> list[dict[str, Any]]:
    """Records of registered datasets, each with the proposals of its file.

    Args:
        names: registered datasets.
        files: one proposal file a dataset, in the same order.
        filters: as `detectron2.data.get_detection_dataset_dicts` takes them.

    Raises:
        FileNotFoundError, ValueError: as `load_proposals`, or the numbers differ.
    """
    if len(names) != len(files):
        raise ValueError(
            f"{len(names)} datasets {tuple(names)} but {len(files)} proposal files {tuple(files)}; "
            "DATASETS.PROPOSAL_FILES_TRAIN and _TEST name one file for each of DATASETS.TRAIN and "
            "TEST when MODEL.LOAD_PROPOSALS is on; tools/compute_proposals.py writes them"
        )
    return [
        record
        for name, file in zip(names, files, strict=True)
        for record in load_proposals(
            get_detection_dataset_dicts(name, check_consistency=False, **filters), file
        )
    ]


def export_detectron2(path: str | Path, proposals: Sequence[ImageProposals]) -> None:
    """Write proposals as the pickle that a plain Detectron2 loads, atomically."""
    content = {
        "ids": [p.image_id for p in proposals],
        "boxes": [p.boxes for p in proposals],
        "objectness_logits": [p.objectness_logits for p in proposals],
        "bbox_mode": int(BoxMode.XYXY_ABS),
    }
    write_atomically(path, lambda file: pickle.dump(content, file, protocol=4))


def proposal_recall(
    records: Iterable[dict[str, Any]],
    proposals: Sequence[ImageProposals],
    iou_threshold: float = 0.5,
) -> tuple[float, int]:
    """Share of ground-truth boxes that some proposal overlaps by at least `iou_threshold`.

    Args:
        records: dataset records with `annotations`; crowds are left out.
        proposals: at least those of the records' images.
        iou_threshold: in (0, 1].

    Returns:
        recall in [0, 1] (nan without ground truth) and G, the number of ground-truth boxes.
    """
    by_id = {p.image_id: p for p in proposals}
    num_found = num_boxes = 0
    for record in records:
        gt_boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record.get("annotations", [])
            if not a.get("iscrowd", 0)
        ]
        num_boxes += len(gt_boxes)
        boxes = by_id[str(record["image_id"])].boxes
        if gt_boxes and len(boxes):
            iou = pairwise_iou(Boxes(torch.tensor(gt_boxes)), Boxes(torch.from_numpy(boxes)))
            num_found += int((iou.max(dim=1).values >= iou_threshold).sum())
    return (num_found / num_boxes if num_boxes else float("nan")), num_boxes
