# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality, in Detectron2's evaluator interface, in one process or many."""

import io
import json
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from hotcoco.panoptic import pq_compute
from PIL import Image

from vastdet.files import read_json, write_atomically

# Suffix of the keys of each part of the categories.
PARTS = {"All": "", "Things": "_th", "Stuff": "_st"}

logger = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """Panoptic, segmentation and recognition quality (Kirillov et al. 2019, section 4.1).

    `process` keeps the models' `panoptic_seg` as PNG files of COCO's format, in memory; `evaluate`
    gathers them on the main process and returns {"panoptic_seg": {"PQ", "SQ", "RQ", and the same
    with "_th" of things and "_st" of stuff}} in percent (other processes return {}). An image that
    several processes saw counts once.
    """

    def __init__(self, dataset_name: str, *, output_folder: str | Path | None) -> None:
        """`predictions.json` goes into the folder; None writes no files."""
        self.metadata = MetadataCatalog.get(dataset_name)
        self.output_folder = None if output_folder is None else Path(output_folder)
        things = self.metadata.thing_dataset_id_to_contiguous_id
        stuff = self.metadata.stuff_dataset_id_to_contiguous_id
        self._thing_ids = {contiguous: own for own, contiguous in things.items()}
        self._stuff_ids = {contiguous: own for own, contiguous in stuff.items()}
        self.reset()

    def reset(self) -> None:
        """Forget the predictions."""
        self._found: dict[Any, tuple[dict[str, Any], bytes]] = {}

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the segments of a batch.

        Each input has "image_id" and "file_name", each output "panoptic_seg": the id of each
        pixel's segment (H, W), 0 for none, and for each segment a dict with `id`, `category_id`
        (contiguous) and `isthing`.

        Raises:
            ValueError: an output has no segments.
        """
        for image, output in zip(inputs, outputs, strict=True):
            ids, segments = output.get("panoptic_seg", (None, None))
            if ids is None or segments is None:
                raise ValueError(
                    f"the model's output for image {image['image_id']!r} has {sorted(output)}, "
                    "expected 'panoptic_seg' with a map of ids and a list of segments"
                )
            found = {
                "image_id": image["image_id"],
                "file_name": f"{Path(image['file_name']).stem}.png",
                "segments_info": [
                    {"id": int(x["id"]), "category_id": self._dataset_id(x)} for x in segments
                ],
            }
            self._found[image["image_id"]] = (found, png_of_ids(ids.cpu().numpy()))

    def _dataset_id(self, segment: Mapping[str, Any]) -> int:
        own = self._thing_ids if segment["isthing"] else self._stuff_ids
        return int(own[int(segment["category_id"])])

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gather and score; {} on other processes.

        Raises:
            ValueError: an image of the dataset was not given, or the ids of a map and of its
                segments are not the same.
        """
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return OrderedDict()
        found = {key: value for part in reversed(gathered) for key, value in part.items()}
        truth = PathManager.get_local_path(self.metadata.panoptic_json)
        content = read_json(truth) | {"annotations": [x for x, _ in found.values()]}
        text = json.dumps(content).encode()
        with tempfile.TemporaryDirectory(prefix="panoptic") as folder:
            for prediction, png in found.values():
                (Path(folder) / prediction["file_name"]).write_bytes(png)
            predictions = Path(folder) / "predictions.json"
            predictions.write_bytes(text)
            table = io.StringIO()
            with redirect_stdout(table):
                scores = pq_compute(
                    truth,
                    str(predictions),
                    gt_folder=PathManager.get_local_path(self.metadata.panoptic_root),
                    pred_folder=folder,
                )
        if self.output_folder is not None:
            write_atomically(self.output_folder / "predictions.json", text)
        results = {
            f"{quality.upper()}{suffix}": 100 * scores[part][quality]
            for part, suffix in PARTS.items()
            for quality in ("pq", "sq", "rq")
        }
        logger.info("Panoptic quality of %s, in percent: %s", self.metadata.name, results)
        return OrderedDict(panoptic_seg=results)


def png_of_ids(ids: np.ndarray) -> bytes:
    """A PNG of COCO's format: the colour of id i is i = red + 256 green + 256^2 blue."""
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1)
    file = io.BytesIO()
    Image.fromarray(colours.astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()
