# SPDX-License-Identifier: Apache-2.0
"""Registration of the generated datasets with Detectron2, and the handler of their paths."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import IO, Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathHandler, PathManager
from iopath.common.file_io import get_cache_dir

from vastdet.data.generated.export import coco_dict
from vastdet.data.generated.splits import (
    ANNOTATION_FILE,
    PREFIX,
    SPLITS,
    GeneratedSplit,
    parse_path,
)
from vastdet.data.register import LazyMetadata
from vastdet.files import write_atomically

REGISTERED_SIZES = (10, 24, 50, 100, 500, 1_000, 5_000, 13_000, 20_000)


def encode_ppm(image: np.ndarray) -> bytes:
    """Encode H x W x 3 uint8 RGB as binary PPM, which costs a copy and every reader knows."""
    height, width = image.shape[:2]
    return b"P6\n%d %d\n255\n" % (width, height) + image.tobytes()


class GeneratedHandler(PathHandler):
    """Opens `generated://` paths: renders the image, or writes out the annotations, on the spot.

    It keeps no state, so it works in forked and spawned data-loader workers alike.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _content(self, path: str) -> bytes:
        split, index = parse_path(path)
        if index is None:
            return json.dumps(coco_dict(split)).encode()
        return encode_ppm(split.render(index).image)

    def _open(
        self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any
    ) -> IO[str] | IO[bytes]:
        self._check_kwargs(kwargs)
        if mode not in ("r", "rt", "rb"):
            raise ValueError(
                f"{path}: got the mode {mode!r}; expected 'r' or 'rb': "
                "a generated dataset is read-only (tools/generate_dataset.py writes one out)"
            )
        content = io.BytesIO(self._content(path))
        return content if "b" in mode else io.TextIOWrapper(content, encoding="utf-8")

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        # Written anew each time: cheap, and never a stale copy of an earlier version.
        self._check_kwargs(kwargs)
        target = Path(get_cache_dir(), "generated", path.removeprefix(PREFIX))
        write_atomically(target, self._content(path))
        return str(target)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            parse_path(path)
        except (ValueError, FileNotFoundError):
            return False
        return True

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path, **kwargs)


def register_generated(name: str, split: GeneratedSplit) -> None:
    """Register a generated dataset under a name; nothing is laid out before it is asked for.

    Args:
        name: the name for `cfg.DATASETS.TRAIN` or `TEST`.
        split: what to generate, for example `GeneratedSplit.default(24, "train")` or that with
            another `SceneConfig`.
    """
    DatasetCatalog.register(name, split.records)
    MetadataCatalog[name] = LazyMetadata(
        name=name,
        evaluator_type="coco",
        json_file=f"{split.folder}/{ANNOTATION_FILE}",
        image_root=split.folder,
        read_space=split.category_space,
    )


def register_all_generated() -> None:
    """Register the path handler and `generated_<K>_<split>` for K in `REGISTERED_SIZES`."""
    PathManager.register_handler(GeneratedHandler())
    for num_categories in REGISTERED_SIZES:
        for split in SPLITS:
            name = f"generated_{num_categories}_{split}"
            register_generated(name, GeneratedSplit.default(num_categories, split))
