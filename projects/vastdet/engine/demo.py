# SPDX-License-Identifier: Apache-2.0
"""Detects objects in files, folders, videos and cameras; writes pictures and one JSON file.

`detections.json` is a COCO results list. Each record has `image_id` (images that could be read,
counted from 1 in their order; for a video the frame, from 1), `file_name` (the input),
`category_id` (the dataset's id where a dataset gave the names, else the contiguous id),
`category_name`, `bbox` (XYWH absolute pixels of the input) and `score`.
"""

import glob
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import BoxMode, Instances
from detectron2.utils.file_io import PathManager
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from tqdm import tqdm

from vastdet.data import category_space
from vastdet.data.image_io import read_image
from vastdet.engine.predictor import Predictor
from vastdet.files import write_atomically, write_json

IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm",
    ".tif", ".tiff", ".webp",
}  # fmt: skip
# Small pictures are drawn larger, so that labels can be read, and vast ones smaller.
MIN_DRAWN_SIDE, MAX_DRAWN_SIDE = 480, 4096
DEFAULT_FPS = 25.0


@dataclass
class Outcome:
    """What a run over files did: detections in COCO's results form, and inputs that failed."""

    num_done: int = 0
    detections: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when every input was read, 1 when some were, 2 when none was."""
        if not self.failures:
            return 0 if self.num_done else 2
        return 1 if self.num_done else 2


def find_images(patterns: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Expand files, folders (searched through, by suffix) and globs, each file once, in order.

    Returns:
        The files, and (pattern, reason) of each pattern that stands for none. A name with a
        prefix of PathManager, such as generated://, is taken as it is.
    """
    files: dict[str, None] = {}
    failures = []
    for pattern in patterns:
        if "://" in pattern or os.path.isfile(pattern):
            found = [pattern]
        elif os.path.isdir(pattern):
            found = sorted(
                str(p) for p in Path(pattern).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES
            )
        else:
            found = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
        if not found:
            is_folder = os.path.isdir(pattern)
            failures.append((pattern, "no images in this folder" if is_folder else "no such file"))
        files.update(dict.fromkeys(found))
    return list(files), failures


def detect_in_images(
    predictor: Predictor,
    files: Sequence[str],
    output: Path,
    *,
    confidence_threshold: float,
    batch_size: int = 1,
) -> Outcome:
    """Draw the detections of every readable image into `output`, and write detections.json there.

    An image that cannot be read is noted with its reason and the rest goes on. Interrupted, the
    JSON file holds what was done. Drawn pictures are JPEG, at most 4096 pixels on a side.
    """
    outcome = Outcome()
    names = unique_names(files)
    drawing = Drawing(predictor)
    waiting: list[tuple[str, dict[str, Any]]] = []

    def flush() -> None:
        results = predictor.run([inputs for _, inputs in waiting])
        for (file, _), instances in zip(waiting, results, strict=True):
            kept = instances[instances.scores >= confidence_threshold]
            # Read again rather than kept, so that a batch of large pictures fits in memory.
            picture = drawing.draw(read_image(file, format="RGB"), kept)
            write_atomically(output / names[file], picture)
            outcome.num_done += 1
            outcome.detections += drawing.records(kept, outcome.num_done, file)
        waiting.clear()

    try:
        for file in tqdm(files, desc="images", unit="image", disable=None):
            try:
                waiting.append((file, predictor.prepare(file)))
            except (ValueError, OSError) as error:
                outcome.failures.append((file, str(error)))
            if len(waiting) == batch_size:
                flush()
        flush()
    finally:
        write_json(output / "detections.json", outcome.detections)
    return outcome


def unique_names(files: Sequence[str]) -> dict[str, str]:
    """A name of a JPEG for each file: its stem, with a number where two files share one."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for file in files:
        stem = Path(file).stem
        name, number = f"{stem}.jpg", 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}.jpg"
        taken.add(name.lower())
        names[file] = name
    return names


class Drawing:
    """Draws with Detectron2's Visualizer, under the predictor's class names."""

    def __init__(self, predictor: Predictor) -> None:
        self.class_names = predictor.class_names
        self.metadata = Metadata(name="demo", thing_classes=predictor.class_names)
        self.space = None if predictor.dataset is None else category_space(predictor.dataset)

    def draw(self, pixels: np.ndarray, instances: Instances) -> bytes:
        """The picture (HxWx3 uint8 RGB) with its detections, as JPEG."""
        height, width = pixels.shape[:2]
        long = max(height, width)
        scale = min(max(1.0, MIN_DRAWN_SIDE / long), MAX_DRAWN_SIDE / long)
        scale = max(scale, 1.0 / min(height, width))
        visualizer = Visualizer(pixels, self.metadata, scale=scale)
        drawn = visualizer.draw_instance_predictions(instances).get_image()
        buffer = io.BytesIO()
        Image.fromarray(drawn).save(buffer, "JPEG", quality=92)
        return buffer.getvalue()

    def name(self, category: int) -> str:
        """A class's name, or its number where the model does not say how many it has."""
        known = category < len(self.class_names)
        return self.class_names[category] if known else f"class {category}"

    def records(self, instances: Instances, image_id: int, file: str) -> list[dict[str, Any]]:
        """The detections in COCO's results form (module docstring)."""
        boxes = BoxMode.convert(
            instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
        ).tolist()
        rows = zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist(), strict=True)
        return [
            {
                "image_id": image_id,
                "file_name": file,
                "category_id": self.space.to_dataset(category) if self.space else category,
                "category_name": self.name(category),
                "bbox": [round(v, 2) for v in box],
                "score": round(score, 5),
            }
            for box, score, category in rows
        ]


def open_capture(source: str | int) -> cv2.VideoCapture:
    """Open a video file or the camera of a number.

    Raises:
        FileNotFoundError: there is no such video.
        ValueError: there is no such camera, or the video cannot be decoded.
    """
    if isinstance(source, str) and not PathManager.isfile(source):
        raise FileNotFoundError(f"there is no video {source}")
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        capture.release()
        raise ValueError(
            f"no camera {source} can be opened: is one connected, and may this user read it?"
            if isinstance(source, int)
            else f"{source} is not a video that OpenCV can decode"
        )
    return capture


def read_frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Frames HxWx3 uint8 in BGR order until the source ends."""
    while True:
        more, frame = capture.read()
        if not more:
            return
        yield frame


def detect_in_video(
    predictor: Predictor,
    source: str | int,
    output: Path,
    *,
    confidence_threshold: float,
    max_frames: int | None = None,
) -> Outcome:
    """Write `output`/<name>.mp4 with the detections of each frame, and detections.json.

    `source` is a file or the number of a camera, which is recorded until `max_frames` or Ctrl-C.
    The video appears under its name when it is complete. Raises as `open_capture` does, and
    ValueError for a video without frames or where OpenCV cannot write one.
    """
    capture = open_capture(source)
    name = f"camera-{source}" if isinstance(source, int) else Path(source).stem
    fps = capture.get(cv2.CAP_PROP_FPS)
    fps = fps if 0 < fps < 1000 else DEFAULT_FPS
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    drawing, outcome = Drawing(predictor), Outcome()
    visualizer = VideoVisualizer(drawing.metadata)
    output.mkdir(parents=True, exist_ok=True)
    try:
        with VideoFile(output / f"{name}.mp4", fps) as video:
            frames = islice(read_frames(capture), max_frames)
            known = None if total <= 0 else min(total, max_frames or total)
            for frame in tqdm(frames, desc=name, unit="frame", total=known, disable=None):
                instances = predictor(frame)
                kept = instances[instances.scores >= confidence_threshold]
                drawn = visualizer.draw_instance_predictions(frame[:, :, ::-1], kept).get_image()
                video.write(drawn[:, :, ::-1])
                outcome.num_done += 1
                outcome.detections += drawing.records(kept, outcome.num_done, str(source))
    except KeyboardInterrupt:
        tqdm.write("stopped; the frames so far are kept")
    finally:
        capture.release()
    if outcome.num_done == 0:
        raise ValueError(f"no frame of {source} could be read")
    write_json(output / "detections.json", outcome.detections)
    return outcome


class VideoFile:
    """An MP4 that is written beside its place and moved there when it is closed."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        handle, self._temporary = tempfile.mkstemp(suffix=path.suffix, dir=path.parent)
        os.close(handle)

    def __enter__(self) -> "VideoFile":
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame HxWx3 uint8 in BGR order; the first one decides the size."""
        if self._writer is None:
            self._size = (frame.shape[1], frame.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(self._temporary, codec, self.fps, self._size)
            if not self._writer.isOpened():
                raise ValueError(f"OpenCV cannot write {self.path}: it lacks the codec mp4v")
        if (frame.shape[1], frame.shape[0]) != self._size:
            frame = cv2.resize(frame, self._size)
        self._writer.write(np.ascontiguousarray(frame))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()
        if self._writer is not None and kind in (None, KeyboardInterrupt):
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self.path)
        else:
            os.unlink(self._temporary)
