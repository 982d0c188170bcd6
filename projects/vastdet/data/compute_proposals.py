# SPDX-License-Identifier: Apache-2.0
"""Proposals of a whole dataset: in several processes, and resumed where an earlier run stopped."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from vastdet.data.image_io import read_image
from vastdet.data.proposal_methods import MAX_PROPOSALS, METHODS, check_method, shuffled
from vastdet.data.proposals import ImageProposals, check_file_name, read_proposals, save_proposals

CHUNK_SIZE = 64  # images of one part file: what a stopped run loses, at most, per process


@dataclass(frozen=True)
class ProposalSettings:
    """What decides the proposals of an image.

    Attributes:
        method: a key of `METHODS`.
        max_proposals: at most this many boxes an image, a pseudo-random choice of them.
    """

    method: str = "selective-search-fast"
    max_proposals: int = MAX_PROPOSALS


def propose(record: dict[str, Any], settings: ProposalSettings) -> ImageProposals:
    """Proposals of one dataset record, XYXY pixels of the upright image; logits fall by rank."""
    image = read_image(record["file_name"], "BGR")
    image_id = str(record["image_id"])
    boxes = shuffled(METHODS[settings.method](image), image_id, settings.max_proposals)
    ranks = np.arange(len(boxes), dtype=np.float32)
    return ImageProposals(image_id, boxes, -ranks / max(1, len(boxes)))


def compute_proposals(
    records: Sequence[dict[str, Any]],
    output: str | Path,
    settings: ProposalSettings,
    num_processes: int | None = None,
) -> list[ImageProposals]:
    """Compute the proposals of all records and write them to an .npz file.

    Finished chunks are kept in `<output>.parts` until the end, so a run that was stopped goes on
    there. A progress bar counts images.

    Args:
        records: dataset records with file_name and image_id.
        output: the .npz file.
        settings: method and number.
        num_processes: worker processes; None for one a processor, 0 to stay in this one.

    Raises:
        ValueError: unknown method, a name without .npz, or parts of a run that had other settings
            or images.
        BrokenRecordError, MissingImageError: an image cannot be read.
    """
    check_method(settings.method)
    check_file_name(output)
    parts = Path(f"{output}.parts")
    _open_parts(parts, settings, records)
    chunks = [records[i : i + CHUNK_SIZE] for i in range(0, len(records), CHUNK_SIZE)]
    jobs = [
        (chunk, parts / f"{i:06d}.npz", settings)
        for i, chunk in enumerate(chunks)
        if not (parts / f"{i:06d}.npz").exists()
    ]
    num_pending = sum(len(chunk) for chunk, _, _ in jobs)
    with tqdm(total=len(records), initial=len(records) - num_pending, unit="image") as progress:
        for num_done in _run(jobs, num_processes):
            progress.update(num_done)
    files = [parts / f"{i:06d}.npz" for i in range(len(chunks))]
    proposals = [p for file in files for p in read_proposals(file)]
    save_proposals(output, proposals)
    shutil.rmtree(parts)
    return proposals


Job = tuple[Sequence[dict[str, Any]], Path, ProposalSettings]


def _run(jobs: list[Job], num_processes: int | None) -> Iterable[int]:
    if num_processes == 0 or not jobs:
        yield from map(_compute_chunk, jobs)
        return
    workers = min(num_processes or os.cpu_count() or 1, len(jobs))
    # OpenCV would start a thread a processor in each worker. Those of this process end before the
    # fork: a worker told to end them would wait for ever for threads that it does not have.
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            yield from pool.map(_compute_chunk, jobs)
    finally:
        cv2.setNumThreads(num_threads)


def _compute_chunk(job: Job) -> int:
    records, path, settings = job
    save_proposals(path, [propose(record, settings) for record in records])
    return len(records)


def _open_parts(parts: Path, settings: ProposalSettings, records: Sequence[dict[str, Any]]) -> None:
    """Make the folder of parts, or check that the one there belongs to the same computation."""
    ids = [str(record["image_id"]) for record in records]
    wanted = json.dumps({**asdict(settings), "chunk_size": CHUNK_SIZE, "image_ids": ids})
    note = parts / "settings.json"
    if note.exists() and note.read_text("utf-8") != wanted:
        raise ValueError(
            f"{parts} holds the parts of a run with other settings or images; finish that run, or "
            "delete the folder to start again"
        )
    parts.mkdir(parents=True, exist_ok=True)
    note.write_text(wanted, "utf-8")
