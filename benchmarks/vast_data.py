#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""From a V3Det-size annotation file to the first training batch: seconds and memory.

Makes the file, 183,354 images and 1,357,377 boxes of 13,204 long-tailed categories, where it is
not there yet; the images are links to a few small photographs of noise. Each loader then runs in a
process of its own, with two workers, while the memory of the three is watched.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

NUM_CATEGORIES = 13_204
NUM_UNUSED_CATEGORIES = 146  # so many of V3Det's have no box in the training set
NUM_IMAGES = 183_354
NUM_BOXES = 1_357_377
MAIN_CATEGORY_SHARE = 0.5
IMAGES_PER_FOLDER = 1000
PHOTO_SIZES = ((640, 480), (480, 640), (500, 375), (512, 512))  # width, height
PHOTOS_PER_SIZE = 8
SECONDS_BETWEEN_LOOKS = 0.25
NAME = "vast_benchmark_train"

# label: (loader, sampler)
RUNS = {
    "Detectron2, uniform": ("detectron2", "TrainingSampler"),
    "Detectron2, repeat factor": ("detectron2", "RepeatFactorTrainingSampler"),
    "vastdet, uniform": ("vastdet", "TrainingSampler"),
    "vastdet, repeat factor": ("vastdet", "RepeatFactorTrainingSampler"),
    "vastdet, class-aware": ("vastdet", "ClassAwareTrainingSampler"),
}


def make_photos(folder: Path, generator: np.random.Generator) -> list[Path]:
    """Small JPEGs of smooth noise, `PHOTOS_PER_SIZE` of each size."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for width, height in PHOTO_SIZES:
        for number in range(PHOTOS_PER_SIZE):
            blocks = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            path = folder / f"{width}x{height}_{number}.jpg"
            Image.fromarray(blocks).resize((width, height)).save(path, quality=85)
            paths.append(path)
    return paths


def draw_annotations(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image index and category id of each box; images have a main category, as V3Det's have."""
    used = NUM_CATEGORIES - NUM_UNUSED_CATEGORIES
    weights = 1.0 / np.arange(10, used + 10) ** 0.9
    weights /= weights.sum()
    extra = generator.multinomial(
        NUM_BOXES - NUM_IMAGES, generator.dirichlet(np.full(NUM_IMAGES, 0.6))
    )
    image = np.repeat(np.arange(NUM_IMAGES), 1 + extra)
    main = generator.choice(used, NUM_IMAGES, p=weights)
    # Every category that is used has an image.
    main[generator.permutation(NUM_IMAGES)[:used]] = np.arange(used)
    other = generator.choice(used, NUM_BOXES, p=weights)
    is_main = generator.random(NUM_BOXES) < MAIN_CATEGORY_SHARE
    is_main[np.unique(image, return_index=True)[1]] = True
    # Frequent and rare categories are mixed in the list.
    ids = generator.permutation(NUM_CATEGORIES)[:used] + 1
    return image, ids[np.where(is_main, main[image], other)]


def annotation_lines(
    image: np.ndarray, category: np.ndarray, photo: np.ndarray, generator: np.random.Generator
) -> Iterator[str]:
    """The annotations as JSON, in the random order of a file that was not sorted."""
    sizes = np.repeat(np.array(PHOTO_SIZES, dtype=float), PHOTOS_PER_SIZE, axis=0)[photo[image]]
    corner = generator.uniform(0, 0.6, (len(image), 2)) * sizes
    side = generator.uniform(0.05, 0.4, (len(image), 2)) * sizes
    boxes = np.concatenate([corner, side], axis=1).round(2).tolist()
    rows = zip(image.tolist(), category.tolist(), boxes, strict=True)
    for number, (image_index, category_id, box) in enumerate(rows):
        yield (
            f'{"," if number else ""}{{"iscrowd":0,"category_id":{category_id},'
            f'"bbox":{json.dumps(box)},"image_id":{image_index + 1},"id":{number + 1},'
            f'"area":{box[2] * box[3]:.4f}}}'
        )


def make_dataset(folder: Path) -> None:
    """Write `train.json` and `images/` into a folder."""
    generator = np.random.default_rng(0)
    photos = make_photos(folder / "photos", generator)
    photo = generator.integers(0, len(photos), NUM_IMAGES)
    images = []
    for index in range(NUM_IMAGES):
        name = f"images/a{index // IMAGES_PER_FOLDER:08d}/{index:06d}_photograph.jpg"
        path = folder / name
        if index % IMAGES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.link(photos[photo[index]], path)
        width, height = PHOTO_SIZES[photo[index] // PHOTOS_PER_SIZE]
        images.append({"file_name": name, "height": height, "width": width, "id": index + 1})
    image, category = draw_annotations(generator)
    order = generator.permutation(len(image))
    categories = [
        {"id": k + 1, "name": f"category {k + 1}", "novel": k % 2, "cat_info": "a long text " * 20}
        for k in range(NUM_CATEGORIES)
    ]
    partial = folder / "train.json.partial"
    with partial.open("w") as file:
        file.write(f'{{"images":{json.dumps(images)},"annotations":[')
        file.writelines(annotation_lines(image[order], category[order], photo, generator))
        file.write(f'],"categories":{json.dumps(categories)}}}')
    partial.rename(folder / "train.json")


def first_batch(folder: Path, loader: str, sampler: str) -> dict[str, float]:
    """Seconds until the first batch of 16 images, in this process; imports do not count."""
    from detectron2.data import build_detection_train_loader
    from detectron2.data.datasets import register_coco_instances

    from vastdet import model_zoo
    from vastdet.data import build_train_loader, register_coco

    cfg = model_zoo.get_config("FasterRCNN/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.001
    clock, cpu = time.perf_counter(), time.process_time()
    if loader == "vastdet":
        register_coco(NAME, folder / "train.json", folder)
        batches: Iterator[Any] = build_train_loader(cfg, seed=0)
    else:
        register_coco_instances(NAME, {}, str(folder / "train.json"), str(folder))
        batches = iter(build_detection_train_loader(cfg))
    batch = next(batches)
    result = {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
    boxes = sum(len(sample["instances"]) for sample in batch)
    # Memory is looked at once more while the workers run.
    for _ in itertools.islice(batches, 4):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return {**result, "images": len(batch), "boxes": boxes}


def proportional_bytes(pid: int) -> int:
    """Memory of a process and its children; what processes share counts once."""
    total = 0
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(rollup.split("\nPss:")[1].split()[0]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return total
    return total + sum(proportional_bytes(int(child)) for child in children)


def measured(folder: Path, label: str) -> dict[str, float]:
    """Run one loader in a process of its own; its seconds, and the peak memory in bytes."""
    command = [sys.executable, __file__, str(folder), "--child", label]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, proportional_bytes(process.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{label}: the process ended with {process.returncode}")
    return {**json.loads(output.splitlines()[-1]), "peak": peak}


def main() -> None:
    """Make the file where needed, measure each loader, print the table of benchmarks/data.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the dataset is, or is to be")
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS), metavar="RUN")
    parser.add_argument("--child", choices=list(RUNS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(first_batch(arguments.folder, *RUNS[arguments.child])))
        return
    if not (arguments.folder / "train.json").exists():
        make_dataset(arguments.folder)
    console = Console()
    size = (arguments.folder / "train.json").stat().st_size
    table = Table(title=f"{NUM_IMAGES:,} images, {NUM_BOXES:,} boxes, {size / 1e6:.0f} MB of JSON")
    for heading in ("loader, sampler", "clock, s", "CPU of the main process, s", "peak, GB"):
        table.add_column(heading, justify="left" if heading.startswith("loader") else "right")
    for label in arguments.only:
        with console.status(label):
            found = measured(arguments.folder, label)
        table.add_row(
            label, f"{found['clock']:.1f}", f"{found['cpu']:.1f}", f"{found['peak'] / 1e9:.2f}"
        )
    console.print(table)


if __name__ == "__main__":
    main()
