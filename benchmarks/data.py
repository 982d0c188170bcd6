#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure the data path: rendering, the training mapper beside Detectron2's, large vocabularies.

The mapper and the vocabulary need files that do not come with the project; without them those
parts are left out, and the output says so.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data.detection_utils import read_image

from vastdet import model_zoo
from vastdet.data import DetectionMapper, register_coco
from vastdet.engine.benchmarking import compare
from vastdet.vocabulary import CategorySpace

IMAGES_PER_ROUND = 400


def seconds_of(function: Callable[[], object]) -> tuple[float, float]:
    """Clock and CPU seconds of a call."""
    clock, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - cpu


def measure_rendering(num_categories: int, rounds: int) -> None:
    """Images a second through `read_image`: layout, rendering, encoding and decoding."""
    records = DatasetCatalog.get(f"generated_{num_categories}_train")
    names = itertools.cycle([record["file_name"] for record in records])

    def read() -> None:
        for name in itertools.islice(names, IMAGES_PER_ROUND):
            read_image(name, "BGR")

    read()
    times = [seconds_of(read) for _ in range(rounds)]
    clock, cpu = (
        sorted(IMAGES_PER_ROUND / t for t in column) for column in zip(*times, strict=True)
    )
    print(
        f"| {num_categories:,} | {statistics.median(cpu):.0f} ({cpu[0]:.0f} to {cpu[-1]:.0f}) "
        f"| {statistics.median(clock):.0f} ({clock[0]:.0f} to {clock[-1]:.0f}) |"
    )


def measure_mapper(folder: Path, rounds: int) -> None:
    """Detectron2's training mapper and ours on the same photographs."""
    name = "benchmark_bccd_train"
    register_coco(name, folder / "annotations" / "train.json", folder / "images")
    cfg = model_zoo.get_config("quick/fcos_bccd.yaml")
    cfg.DATASETS.TRAIN = (name,)
    plain = cfg.clone()
    jitter = plain.INPUT.COLOR_JITTER
    jitter.BRIGHTNESS = jitter.CONTRAST = jitter.SATURATION = 0.0
    records = DatasetCatalog.get(name)[:16]

    def mapped(mapper: Callable[[dict[str, Any]], Any]) -> Callable[[], object]:
        return lambda: [mapper(record) for record in records]

    result = compare(
        {
            "Detectron2's DatasetMapper": mapped(DatasetMapper(plain, True)),
            "DetectionMapper": mapped(DetectionMapper(plain, True)),
            "DetectionMapper with colour jitter": mapped(DetectionMapper(cfg, True)),
        },
        rounds=rounds,
        items_per_call=len(records),
    )
    print(result.as_markdown("images"))


def measure_vocabulary(folder: Path, rounds: int) -> None:
    """V3Det's categories and tree, from the published form and from a saved space."""
    saved = Path("output") / "v3det_categories.json"

    def build() -> CategorySpace:
        return CategorySpace.from_v3det(
            folder / "v3det_2023_v1_train_cat_info.json",
            category_tree=folder / "v3det_category_tree_from_wordnet.json",
        )

    build().save(saved)
    readers = {"original files": build, "saved space": lambda: CategorySpace.load(saved)}
    for name, reader in readers.items():
        times = [seconds_of(reader) for _ in range(rounds)]
        clock, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {clock:.2f} | {cpu:.2f} |")


def main() -> None:
    """Print the tables of benchmarks/data.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bccd", type=Path, metavar="DIR", help="folder of the blood cells")
    parser.add_argument("--v3det", type=Path, metavar="DIR", help="folder of V3Det's categories")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: 5)")
    found = parser.parse_args()
    print("| categories | images a CPU second | images a second |\n|---|---|---|")
    for num_categories in (24, 1000, 20000):
        measure_rendering(num_categories, found.rounds)
    print()
    if found.bccd:
        measure_mapper(found.bccd, found.rounds)
    else:
        print("mapper: left out, give --bccd")
    print()
    if found.v3det:
        print("| V3Det's categories from | clock, s | CPU, s |\n|---|---|---|")
        measure_vocabulary(found.v3det, found.rounds)
    else:
        print("vocabulary: left out, give --v3det")


if __name__ == "__main__":
    main()
