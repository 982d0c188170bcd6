# SPDX-License-Identifier: Apache-2.0
"""The evaluator as the trainer uses it: datasets, processes, keys, files, errors."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from vastdet.evaluation import build_evaluator

NAMES = ["cat", "dog", "owl"]


def instances(boxes: list, scores: list, classes: list, masks: np.ndarray | None = None):
    result = Instances((100, 100))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if masks is not None:
        result.pred_masks = torch.from_numpy(masks)
    return result


def random_dataset(num_images: int = 12, seed: int = 0) -> tuple[list[dict], list[Instances]]:
    generator = np.random.default_rng(seed)
    records, outputs = [], []
    for image in range(num_images):
        count = int(generator.integers(0, 5))
        corners = generator.uniform(0, 50, (count, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(5, 50, (count, 2))], 1)
        classes = generator.integers(0, 2, count)  # nothing is ever an owl
        annotations = [
            {
                "bbox": box.tolist(),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": int(category),
                "iscrowd": int(generator.random() < 0.1),
            }
            for box, category in zip(boxes, classes, strict=True)
        ]
        records.append(
            {
                "file_name": f"{image}.png",
                "image_id": 7 * image,
                "height": 100,
                "width": 100,
                "annotations": annotations,
            }
        )
        found = np.concatenate([boxes + generator.normal(0, 3, boxes.shape), boxes + 20])
        labels = generator.integers(0, 3, 2 * count)
        labels[:count] = np.where(generator.random(count) < 0.8, classes, labels[:count])
        scores = generator.random(2 * count).round(1)
        outputs.append(instances(found.tolist(), scores.tolist(), labels.tolist()))
    return records, outputs


@pytest.fixture
def dataset():
    """Registers dataset dicts under a name of their own and takes them back afterwards."""
    names = []

    def register(records: list[dict], **metadata) -> str:
        name = f"evaluation_test_{len(names)}"
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(thing_classes=NAMES, evaluator_type="coco", **metadata)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(evaluator, records: list[dict], outputs: list[Instances]) -> dict:
    evaluator.reset()
    for record, output in zip(records, outputs, strict=True):
        evaluator.process([record], [{"instances": output}])
    return evaluator.evaluate()


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_equals_detectron2(cfg: CfgNode, dataset, tmp_path: Path, engine: str) -> None:
    records, outputs = random_dataset()
    name = dataset(records)
    cfg.TEST.COCO_ENGINE = engine
    cfg.TEST.PLOTS = "never"
    ours = run(build_evaluator(cfg, name, tmp_path / "ours"), records, outputs)["bbox"]
    theirs = COCOEvaluator(name, output_dir=str(tmp_path / "theirs"))
    reference = run(theirs, records, outputs)["bbox"]
    for key, value in reference.items():
        assert ours[key] == pytest.approx(value, abs=1e-9, nan_ok=True), key
    assert math.isnan(ours["AP-owl"])
    assert ours["AP-cat"] > 10
    assert {"AR1", "AR10", "AR100", "ARs", "ARm", "ARl"} <= set(ours)
