# SPDX-License-Identifier: Apache-2.0
"""A made-up training run with the files that training and evaluation leave behind."""

import csv
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw

COLORS = {"red": (206, 62, 64), "teal": (40, 140, 150), "amber": (226, 164, 48)}
SHAPES = ("disc", "square")
CATEGORIES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
DATASET = "report_fixture_val"


def draw_image(file: Path, rng: random.Random) -> list[dict]:
    """A noisy picture of 200x150 pixels with up to six shapes; returns their annotations."""
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 14, (150, 200, 1))
    base = np.array([rng.randrange(90, 190) for _ in range(3)])
    picture = Image.fromarray((base + noise).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    annotations = []
    for _ in range(rng.randrange(2, 7)):
        category, side = rng.randrange(len(CATEGORIES)), rng.randrange(16, 60)
        x, y = rng.randrange(200 - side), rng.randrange(150 - side)
        color, shape = CATEGORIES[category].split()
        draw = pen.ellipse if shape == "disc" else pen.rectangle
        draw((x, y, x + side, y + side), fill=COLORS[color], outline=(20, 20, 20))
        annotations.append(
            {
                "bbox": [x, y, side, side],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": category,
                "iscrowd": 0,
            }
        )
    picture.save(file)
    return annotations


def detect(record: dict, rng: random.Random) -> list[dict]:
    """Detections (dataset ids are contiguous ids plus 1): most objects, some of them twice."""
    found = []
    for annotation in record["annotations"]:
        x, y, w, h = annotation["bbox"]
        for _ in range(rng.choice((0, 1, 1, 1, 1, 2))):
            box = [x + rng.gauss(0, 2), y + rng.gauss(0, 2), w * rng.uniform(0.9, 1.2), h]
            category = annotation["category_id"]
            if rng.random() < 0.15:
                category = rng.randrange(len(CATEGORIES))
            found.append((box, category, rng.betavariate(4, 2)))
    found += [([rng.uniform(0, 150), rng.uniform(0, 100), 30, 30], 0, 0.2) for _ in range(3)]
    return [
        {"image_id": record["image_id"], "category_id": c + 1, "bbox": b, "score": s}
        for b, c, s in found
    ]


def write_scalars(file: Path) -> None:
    """Losses, learning rate and, every 200 iterations, AP."""
    rng = random.Random(1)
    with file.open("w") as stream:
        for i in range(19, 1000, 20):
            decay = math.exp(-i / 300)
            parts = {
                "loss_rpn_cls": 0.6 * decay + 0.05,
                "loss_rpn_loc": 0.2 * decay + 0.05,
                "loss_cls": 1.5 * decay + 0.2,
                "loss_box_reg": 0.3 * decay + 0.25,
            }
            parts = {k: v * rng.uniform(0.9, 1.1) for k, v in parts.items()}
            lr = 0.02 * min(1, i / 100) * (0.5 + 0.5 * math.cos(math.pi * i / 1000))
            row = {"iteration": i, "total_loss": sum(parts.values()), "lr": lr, "time": 0.31}
            row |= parts | {"data_time": 0.01}
            if (i + 1) % 200 == 0:
                row |= {"bbox/AP": 50 * (1 - decay), "bbox/AP50": 75 * (1 - decay)}
                row |= {"bbox/AP75": 55 * (1 - decay), "bbox/APs": float("nan")}
            stream.write(json.dumps(row) + "\n")


def write_evaluation(folder: Path, categories: list[str]) -> None:
    """Summary, table and a plot."""
    folder.mkdir(parents=True)
    scores = {"AP": 47.31, "AP50": 71.9, "AP75": 52.4, "APs": None, "APm": 49.0, "APl": 61.2}
    scores |= {"AR1": 30.1, "AR100": 58.2, "groups": {"rare": {"AP": 31.5}}}
    content = {"dataset": DATASET, "note": "", "num_images": 8, "bbox": scores}
    (folder / "metrics.json").write_text(json.dumps(content))
    with (folder / "per_category.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["category_id", "name", "frequency", "ap", "ap50", "ar", "num_boxes"])
        for i, name in enumerate(categories):
            ap = "" if i == 1 else 70.4 - 7.7 * i
            writer.writerow([i + 1, name, "", ap, 90.1 - 5 * i, 71.5 - 6 * i, 120 - 13 * i])
    for name in ("pr_curve", "confusion_matrix"):
        Image.new("RGB", (320, 240), (240, 240, 240)).save(folder / f"{name}.png")


def write_selections(file: Path, records: list[dict]) -> None:
    """Four selected categories an image (dataset ids), the last of its labels never among them."""
    rows = []
    for record in records:
        labels = sorted({a["category_id"] for a in record["annotations"]})
        others = [k for k in range(len(CATEGORIES)) if k not in labels]
        rows.append([k + 1 for k in [*labels[:-1], *others]][:4])
        rows[-1] += [-1] * (4 - len(rows[-1]))
    header = {"format": "vastdet.SelectedCategories", "version": 1}
    header |= {"image_ids": [r["image_id"] for r in records]}
    scores = np.tile(np.array([0.9, 0.5, 0.25, 0.125], dtype=np.float32), (len(rows), 1))
    np.savez(file, header=np.array(json.dumps(header)), categories=np.array(rows), scores=scores)


RunMaker = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[RunMaker]:
    """Call it with the number of images to get the folder of a run of a registered dataset.

    With `selects`, it is the run of a detector that selects categories.
    """

    def make(
        num_images: int = 4, categories: list[str] | None = None, *, selects: bool = False
    ) -> Path:
        names = categories or CATEGORIES
        folder = tmp_path / "run"
        rng = random.Random(0)
        (tmp_path / "images").mkdir()
        write_evaluation(folder / "inference" / DATASET, names)
        records = []
        for i in range(num_images):
            file = tmp_path / "images" / f"{i:03}.png"
            annotations = draw_image(file, rng)
            record = {"file_name": str(file), "image_id": i, "height": 150, "width": 200}
            records.append(record | {"annotations": annotations})
        results = [d for r in records for d in detect(r, rng)]
        (folder / "inference" / DATASET / "coco_instances_results.json").write_text(
            json.dumps(results)
        )
        if selects:
            write_selections(folder / "inference" / DATASET / "selected_categories.npz", records)
        write_scalars(folder / "metrics.json")
        (folder / "config.yaml").write_text(
            f"DATASETS:\n  TEST: []\n  TRAIN: [{DATASET}]\nMODEL:\n  META_ARCHITECTURE: RetinaNet\n"
            f"  DEVICE: cpu\n  WEIGHTS: {tmp_path}/secret/model.pth\n"
            "  BACKBONE:\n    NAME: build_x_backbone\n"
            "SOLVER:\n  IMS_PER_BATCH: 8\n  MAX_ITER: 1000\n"
        )
        DatasetCatalog.register(DATASET, lambda: records)
        MetadataCatalog.get(DATASET).set(
            thing_classes=names,
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(names))},
        )
        return folder

    yield make
    if DATASET in DatasetCatalog.list():
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
