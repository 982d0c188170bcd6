# SPDX-License-Identifier: Apache-2.0
"""One process of a distributed evaluation: RANK WORLD_SIZE FOLDER. Run by test_coco.py."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from vastdet.evaluation import CocoEvaluator


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{world_size}", rank=rank, world_size=world_size
    )
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 50, (12, 2))
    boxes = np.concatenate([corners, corners + 30], axis=1)
    records = [
        {
            "image_id": image,
            "height": 100,
            "width": 100,
            "annotations": [{"bbox": boxes[image].tolist(), "bbox_mode": 0, "category_id": 0}],
        }
        for image in range(12)
    ]
    outputs = []
    for box in boxes:
        found = Instances((100, 100))
        shifted = torch.from_numpy(box + generator.normal(0, 3, (3, 4))).float()
        found.pred_boxes = Boxes(shifted)
        found.scores = torch.from_numpy(generator.random(3)).float()
        found.pred_classes = torch.zeros(3, dtype=torch.int64)
        outputs.append(found)
    DatasetCatalog.register("distributed", lambda: records)
    MetadataCatalog.get("distributed").set(thing_classes=["cat"])
    evaluator = CocoEvaluator("distributed", output_folder=None)
    # Uneven shares; images 7 and 8 go to both processes, as a padded sampler would send them.
    share = [range(12)] if world_size == 1 else [range(9), range(7, 12)]
    for image in share[rank]:
        evaluator.process([records[image]], [{"instances": outputs[image]}])
    result = evaluator.evaluate()
    (folder / f"result_{rank}_of_{world_size}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
