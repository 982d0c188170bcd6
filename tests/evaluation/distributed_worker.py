# SPDX-License-Identifier: Apache-2.0
"""One of two processes that evaluate together: RANK FOLDER. Run, and imported, by test_coco.py."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from vastdet.evaluation import CocoEvaluator

NAME = "distributed"
# Uneven shares; images 7 and 8 go to both processes, as a padded sampler would send them.
SHARES = (range(9), range(7, 12))


def evaluate(images: range) -> dict:
    """Evaluate the given ones of 12 images, with 3 detections each."""
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 50, (12, 2))
    boxes = np.concatenate([corners, corners + 30], axis=1)
    records = [
        {"image_id": i, "annotations": [{"bbox": box, "bbox_mode": 0, "category_id": 0}]}
        for i, box in enumerate(boxes.tolist())
    ]
    found = boxes[:, None] + generator.normal(0, 3, (12, 3, 4))
    scores = generator.random((12, 3))
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=["cat"])
    evaluator = CocoEvaluator(NAME, output_folder=None)
    for image in images:
        output = Instances((100, 100))
        output.pred_boxes = Boxes(torch.from_numpy(found[image]).float())
        output.scores = torch.from_numpy(scores[image]).float()
        output.pred_classes = torch.zeros(3, dtype=torch.int64)
        evaluator.process([records[image]], [{"instances": output}])
    return evaluator.evaluate()


def main(rank: int, folder: Path) -> None:
    """Evaluate this process's share and write what it returns."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=len(SHARES),
        timeout=timedelta(minutes=2),
    )
    try:
        result = evaluate(SHARES[rank])
    finally:
        torch.distributed.destroy_process_group()
    (folder / f"rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
