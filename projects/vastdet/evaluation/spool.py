# SPDX-License-Identifier: Apache-2.0
"""Detections as they come from a model, kept in bytes: on disk, or in memory without a folder.

A detection takes 28 bytes, a mask 12 and its RLE. On disk they are in files without a name, which
only the process that made them can read and which vanish with it, however it ends: nothing is left
that another run could take for results. They are sent to the main process in pieces of bounded
size, so machines need no folder in common, and never as objects.

Shapes: D detections.
"""

import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from detectron2.utils import comm

from vastdet.evaluation.detections import Detections, pack_masks, unpack_masks

RECORD = np.dtype([("image", "i4"), ("category", "i4"), ("box", "f4", (4,)), ("score", "f4")])
MASK_RECORD = np.dtype([("size", "i4", (2,)), ("length", "i4")])
# What one process sends at a time; the main process holds one of each process.
PIECE_BYTES = 32 * 2**20


@dataclass
class DetectionSpool:
    """Appends detections, and gathers those of all processes.

    Attributes:
        folder: where there is room for them, made if need be; None keeps them in memory.
    """

    folder: Path | None = None
    _some_masked: bool = field(default=False, init=False)
    _all_masked: bool = field(default=True, init=False)
    _streams: dict[str, BinaryIO] = field(default_factory=dict, init=False, repr=False)

    def add(self, part: Detections) -> None:
        """Keep detections whose boxes and scores are float32 by value, as models predict them."""
        self._some_masked |= part.masks is not None
        if not len(part):
            return
        rows = np.empty(len(part), dtype=RECORD)
        rows["image"], rows["category"] = part.image_index, part.category_index
        rows["box"], rows["score"] = part.boxes, part.scores
        self._stream("rows").write(rows.tobytes())
        self._all_masked &= part.masks is not None
        if part.masks is not None:
            mask_rows = np.empty(len(part), dtype=MASK_RECORD)
            mask_rows["size"], mask_rows["length"], counts = pack_masks(part.masks)
            self._stream("mask_rows").write(mask_rows.tobytes())
            self._stream("mask_counts").write(counts.tobytes())

    def gather(self) -> list[Detections]:
        """What each process has kept, in the order of their ranks; [] on other than the main one.

        Every process must call it. Masks are left out when something was kept without.
        """
        rows = [part.view(RECORD) for part in gather_bytes(self._stream("rows"))]
        flags = comm.all_gather((self._some_masked, self._all_masked))
        if not (any(some for some, _ in flags) and all(every for _, every in flags)):
            return [from_records(part) for part in rows]
        mask_rows = [part.view(MASK_RECORD) for part in gather_bytes(self._stream("mask_rows"))]
        counts = gather_bytes(self._stream("mask_counts"))
        return [from_records(*parts) for parts in zip(rows, mask_rows, counts, strict=True)]

    def close(self) -> None:
        """Forget what was kept, and free its room."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        self._some_masked, self._all_masked = False, True

    def _stream(self, name: str) -> BinaryIO:
        if name not in self._streams:
            self._streams[name] = self._new_stream()
        return self._streams[name]

    def _new_stream(self) -> BinaryIO:
        if self.folder is None:
            return io.BytesIO()
        self.folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self.folder)


def from_records(
    rows: np.ndarray, mask_rows: np.ndarray | None = None, counts: np.ndarray | None = None
) -> Detections:
    """Detections from `RECORD`s, with the masks of `MASK_RECORD`s and the bytes of their RLEs."""
    masks = None
    if mask_rows is not None and counts is not None:
        masks = unpack_masks(mask_rows["size"], mask_rows["length"], counts)
    return Detections(
        image_index=rows["image"].astype(np.int64),
        category_index=rows["category"].astype(np.int64),
        boxes=rows["box"].astype(np.float64),
        scores=rows["score"].astype(np.float64),
        masks=masks,
    )


def gather_bytes(stream: BinaryIO) -> list[np.ndarray]:
    """The whole content of each process's stream, uint8, on the main process; [] on the others.

    Every process must call it; each sends at most `PIECE_BYTES` at a time.
    """
    size = stream.seek(0, io.SEEK_END)
    sizes = comm.all_gather(size)
    stream.seek(0)
    main = comm.is_main_process()
    whole = [np.empty(size, dtype=np.uint8) for size in sizes] if main else []
    for start in range(0, max(sizes), PIECE_BYTES):
        for part, piece in zip(whole, comm.gather(stream.read(PIECE_BYTES)), strict=True):
            part[start : start + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
    stream.seek(0, io.SEEK_END)
    return whole
