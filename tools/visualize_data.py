#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw what a dataset holds, or what the mapper makes of it and feeds the model."""

import argparse
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from rich.progress import track

import vastdet  # noqa: F401  (registers the datasets)
from vastdet.data import BrokenRecordError, build_train_loader, category_space, read_image
from vastdet.data.mapper import boxes_of
from vastdet.engine.config_files import load_config
from vastdet.engine.tools import add_register_argument, exit_status, register_datasets

EPILOG = """
annotation: the pictures and boxes of the dataset as they are; crowd regions are marked "|crowd".
dataloader: the training batches, resized and augmented as the config says.

Examples:
    $ visualize_data.py --register mine train.json images/ --output output/look
    $ visualize_data.py --source dataloader --config-file configs/quick/fcos_generated.yaml \\
        --output output/look INPUT.COLOR_JITTER.HUE 0.05

KEY VALUE overrides of the config come last.
"""
# Longer sides are drawn smaller, and shorter ones larger, so that labels can be read.
SIDE = 800
CELL = 480
GAP = 8


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", choices=("annotation", "dataloader"), default="annotation")
    parser.add_argument("--config-file", metavar="YAML", help="its DATASETS.TRAIN is drawn")
    parser.add_argument("--dataset", metavar="NAME", help="draw this registered dataset instead")
    add_register_argument(parser, "register a dataset in COCO format and draw it")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--num", type=int, default=12, metavar="N", help="pictures (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="which pictures (default: 0)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides as KEY VALUE ...")
    found = parser.parse_args(arguments)
    if found.num < 1:
        parser.error(f"--num must be at least 1: {found.num}")
    return found


def build_config(arguments: argparse.Namespace) -> CfgNode:
    """The config, with the datasets to draw in DATASETS.TRAIN.

    Raises:
        ValueError: no dataset is named, or there is none of its name.
    """
    register_datasets(arguments)
    cfg = load_config(arguments.config_file, arguments.opts)
    own = tuple(name for name, *_ in arguments.register)
    cfg.DATASETS.TRAIN = (arguments.dataset,) if arguments.dataset else own or cfg.DATASETS.TRAIN
    if not cfg.DATASETS.TRAIN:
        raise ValueError("nothing to draw: give --dataset, --register, or a config with data")
    for name in cfg.DATASETS.TRAIN:
        category_space(name)
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def annotated(cfg: CfgNode, seed: int) -> Iterator[dict[str, Any]]:
    """Records in random order, with their image (HxWx3, RGB) and boxes (XYXY pixels)."""
    records = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    random.Random(seed).shuffle(records)
    for record in records:
        annotations = record.get("annotations", [])
        try:
            boxes = boxes_of(record, annotations)
            image = read_image(record["file_name"], "RGB")
        except BrokenRecordError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        drawn = [
            {**annotation, "bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS}
            for annotation, box in zip(annotations, boxes, strict=True)
        ]
        yield {**record, "annotations": drawn, "image": image}


def fed(cfg: CfgNode, seed: int) -> Iterator[dict[str, Any]]:
    """What the model is fed: `image` is the augmented one (HxWx3, RGB)."""
    for batch in build_train_loader(cfg, seed=seed):
        for record in batch:
            image = record["image"].permute(1, 2, 0).numpy()
            record["image"] = detection_utils.convert_image_to_rgb(image, cfg.INPUT.FORMAT)
            yield record


def draw(record: dict[str, Any], metadata: Any) -> np.ndarray:
    """The picture of a record with its boxes, masks, keypoints and names, HxWx3 RGB uint8."""
    image = record["image"].astype(np.uint8)
    visualizer = Visualizer(image, metadata, scale=SIDE / max(image.shape[:2]))
    if "instances" not in record:
        return visualizer.draw_dataset_dict(record).get_image()
    instances = record["instances"]
    names = metadata.thing_classes
    return visualizer.overlay_instances(
        boxes=instances.gt_boxes,
        labels=[names[i] for i in instances.gt_classes],
        masks=instances.get("gt_masks") if instances.has("gt_masks") else None,
        keypoints=instances.get("gt_keypoints") if instances.has("gt_keypoints") else None,
    ).get_image()


def grid(pictures: list[np.ndarray]) -> Image.Image:
    """Pictures in rows of four or fewer, each shrunk into a cell."""
    cells = [Image.fromarray(picture) for picture in pictures]
    for cell in cells:
        cell.thumbnail((CELL - GAP, CELL - GAP))
    columns = min(4, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + GAP for row in rows]
    sheet = Image.new("RGB", (columns * CELL, sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * CELL + GAP // 2, sum(heights[:number]) + GAP // 2))
    return sheet


def run(arguments: argparse.Namespace) -> None:
    """Draw and write."""
    cfg = build_config(arguments)
    records = (annotated if arguments.source == "annotation" else fed)(cfg, arguments.seed)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    arguments.output.mkdir(parents=True, exist_ok=True)
    # Detectron2's visualizer draws its colours from here.
    np.random.seed(arguments.seed)  # noqa: NPY002
    pictures = []
    chosen = islice(records, arguments.num)
    for record in track(chosen, "drawing", arguments.num, disable=not sys.stdout.isatty()):
        picture = draw(record, metadata)
        stem = Path(str(record["file_name"])).stem
        Image.fromarray(picture).save(arguments.output / f"{len(pictures):03d}_{stem}.png")
        pictures.append(picture)
    if not pictures:
        raise ValueError(f"no picture of {cfg.DATASETS.TRAIN} could be drawn")
    grid(pictures).save(arguments.output / "grid.png")
    print(f"{len(pictures)} pictures, and all of them in {arguments.output / 'grid.png'}")


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
