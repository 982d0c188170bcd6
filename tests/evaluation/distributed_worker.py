# SPDX-License-Identifier: Apache-2.0
"""One of three processes that evaluate together: RANK FOLDER. Run, and imported, by test_spool.py.

They evaluate once with all three, and once as two, the third standing aside.
"""

import json
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from vastdet.evaluation import CocoEvaluator, spool

NAME = "distributed"
NUM_IMAGES = 12
# By number of processes: uneven shares, some images twice, as padded samplers send them, and one
# process without any.
SHARES = {2: (range(9), range(7, 12)), 3: (range(8), range(0), range(6, 12))}


def corner_polygons(boxes: np.ndarray) -> list[list[list[float]]]:
    """Boxes as polygons of four corners."""
    return [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()]


def scene() -> tuple[list[dict], list[Instances]]:
    """Images with a cat or an owl each, and three detections with masks."""
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 50, (NUM_IMAGES, 2))
    boxes = np.concatenate([corners, corners + 30], axis=1)
    classes = generator.integers(0, 2, NUM_IMAGES)
    records = [
        {
            "image_id": 100 - i,
            "height": 100,
            "width": 100,
            "annotations": [
                {"bbox": box, "bbox_mode": 0, "category_id": int(k), "segmentation": polygon}
            ],
        }
        for i, (box, k, polygon) in enumerate(
            zip(boxes.tolist(), classes, corner_polygons(boxes), strict=True)
        )
    ]
    outputs = []
    for box, k in zip(boxes, classes, strict=True):
        output = Instances((100, 100))
        found = torch.from_numpy(box + generator.normal(0, 3, (3, 4))).float()
        output.pred_boxes = Boxes(found)
        output.scores = torch.from_numpy(generator.random(3)).float()
        output.pred_classes = torch.tensor([k, k, 1 - k])
        output.pred_masks = torch.zeros(3, 100, 100, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(output.pred_masks, found.clamp(min=0).int(), strict=True):
            mask[y0:y1, x0:x1] = True
        outputs.append(output)
    return records, outputs


def evaluate(images: Iterable[int], folder: Path) -> dict:
    """Evaluate the given images and write the files into a folder."""
    records, outputs = scene()
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=["cat", "owl"])
    try:
        evaluator = CocoEvaluator(NAME, output_folder=folder)
        for image in images:
            evaluator.process([records[image]], [{"instances": outputs[image]}])
        return evaluator.evaluate()
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def main(rank: int, folder: Path) -> None:
    """Evaluate this process's shares and write what is returned."""
    spool.PIECE_BYTES = 100  # less than a process has: three detections and masks are 120
    for count, shares in SHARES.items():
        if rank >= count:
            continue
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meet{count}",
            rank=rank,
            world_size=count,
            timeout=timedelta(minutes=2),
        )
        try:
            result = evaluate(shares[rank], folder / f"by_{count}")
        finally:
            torch.distributed.destroy_process_group()
            comm._get_global_gloo_group.cache_clear()
        (folder / f"rank{rank}_of_{count}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
