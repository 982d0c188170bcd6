#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Time the scoring of synthetic detections: COCO's AP beside pycocotools, or V3Det at full size.

The fast engine runs before and after the reference, so that a change in the machine's load shows.
With --v3det-size, both metrics of V3Det are scored on as many images, categories and boxes as its
validation set has, and then, in a process of its own, as many images as pycocotools can do. With
--results-files, as many detections are written and read in both formats of results files.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vastdet.evaluation.confusion import confusion_matrix
from vastdet.evaluation.detections import Detections
from vastdet.evaluation.engines import (
    Curves,
    accumulate,
    run_pycocotools,
)
from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.metrics import score
from vastdet.evaluation.protocols import VAST_MAX_DETS, v3det_protocols
from vastdet.evaluation.results_file import read_results, write_results_json
from vastdet.evaluation.results_store import write_store
from vastdet.vocabulary import CategoryHierarchy, CategorySpace

BOXES_PER_IMAGE = 7  # COCO val2017 has 36,781 boxes in 5,000 images, V3Det val 220,429 in 29,821
V3DET_IMAGES, V3DET_CATEGORIES, V3DET_DETECTIONS = 29_821, 13_204, 300
V3DET_INNER = 900  # categories that have others below them; a tree over V3Det's names has 893


def plain_space(num_categories: int) -> CategorySpace:
    """Categories without a tree."""
    return CategorySpace.from_names([f"category {k}" for k in range(num_categories)])


def vast_space(num_categories: int) -> CategorySpace:
    """A random tree in which the first `V3DET_INNER` categories are inner nodes, half are novel."""
    generator = np.random.default_rng(1)
    parents = [int(generator.integers(0, min(k, V3DET_INNER))) for k in range(1, num_categories)]
    names = [f"category {k}" for k in range(num_categories)]
    edges = [(names[parent], names[k + 1]) for k, parent in enumerate(parents)]
    return CategorySpace(
        names=tuple(names),
        dataset_ids=tuple(range(1, num_categories + 1)),
        novel=tuple(bool(flag) for flag in generator.integers(0, 2, num_categories)),
        hierarchy=CategoryHierarchy.from_ids(edges, category_nodes=names),
    )


def synthetic(
    num_images: int, per_image: int, space: CategorySpace
) -> tuple[GroundTruth, Detections]:
    """Boxes in 640 x 480 images; 7 detections an image near a box, the others anywhere."""
    generator = np.random.default_rng(0)
    num_categories = len(space)
    image = np.repeat(np.arange(num_images), BOXES_PER_IMAGE)
    category = generator.choice(num_categories, len(image), p=shares(space))
    boxes = np.concatenate(
        [
            generator.uniform(0, 400, (len(image), 2)),
            np.exp(generator.uniform(2.3, 5.5, (len(image), 2))),
        ],
        axis=1,
    )
    truth = GroundTruth(
        space=space,
        image_ids=tuple(range(num_images)),
        image_sizes=np.tile([480, 640], (num_images, 1)),
        image_index=image,
        category_index=category,
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        is_crowd=generator.random(len(image)) < 0.01,
    )
    clutter = num_images * (per_image - BOXES_PER_IMAGE)
    near = boxes + generator.normal(0, 0.06, boxes.shape) * np.tile(boxes[:, 2:], 2)
    anywhere = boxes[generator.integers(0, len(boxes), clutter)]
    columns = {
        "image_index": np.concatenate([image, generator.integers(0, num_images, clutter)]),
        "category_index": np.concatenate(
            [mistaken(category, space, generator), generator.integers(0, num_categories, clutter)]
        ),
        "boxes": np.concatenate([near, anywhere]),
        "scores": np.concatenate([generator.beta(4, 2, len(near)), generator.beta(1, 6, clutter)]),
    }
    order = np.argsort(columns["image_index"], kind="stable")
    return truth, Detections(**columns)[order]


def shares(space: CategorySpace) -> np.ndarray:
    """How often each category is labelled: all alike, or with a long tail where there is a tree."""
    weights = np.ones(len(space))
    if space.hierarchy is not None:
        weights = 1 / (50 + np.random.default_rng(2).permutation(len(space)))
    return weights / weights.sum()


def mistaken(
    category: np.ndarray, space: CategorySpace, generator: np.random.Generator
) -> np.ndarray:
    """The categories; where there is a tree, a fifth replaced by one above or below."""
    if space.hierarchy is None:
        return category
    below, above = space.hierarchy.category_ancestor_pairs.T
    source, target = np.concatenate([below, above]), np.concatenate([above, below])
    order = np.argsort(source, kind="stable")
    source, target = source[order], target[order]
    first = np.searchsorted(source, category)
    count = np.searchsorted(source, category, side="right") - first
    relative = target[first + generator.integers(0, np.maximum(count, 1))]
    replaced = (count > 0) & (generator.random(len(category)) < 0.2)
    return np.where(replaced, relative, category)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, the seconds on the clock and the seconds of CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - clock, time.process_time() - cpu


def compare_coco(num_images: int, per_image: int, num_categories: int) -> None:
    """Time COCO's AP by both engines, and print their largest difference."""
    truth, found = synthetic(num_images, per_image, plain_space(num_categories))
    console = Console()
    table = Table(title=f"{len(found):,} detections, {len(truth.boxes):,} boxes")
    for heading in ("step", "clock, s", "CPU, s"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    curves: dict[str, Curves] = {}
    seconds: dict[str, list[tuple[float, float]]] = {}
    for run, engine in enumerate(("hotcoco", "hotcoco", "pycocotools", "hotcoco", "hotcoco")):
        with console.status(engine):
            curves[engine], clock, cpu = timed(lambda e=engine: accumulate(truth, found, engine=e))
        seconds.setdefault(engine, []).append((clock, cpu))
        table.add_row(f"run {run + 1}: {engine}", f"{clock:.2f}", f"{cpu:.2f}")
    for name, work in (
        ("numbers from curves", lambda: score(curves["hotcoco"], truth, found)),
        ("confusion matrix", lambda: confusion_matrix(truth, found, score_threshold=0.3)),
    ):
        _, clock, cpu = timed(work)
        table.add_row(name, f"{clock:.2f}", f"{cpu:.2f}")
    console.print(table)
    fast, reference = (np.median(seconds[name], axis=0) for name in ("hotcoco", "pycocotools"))
    ratios = reference / fast
    console.print(
        f"pycocotools / hotcoco: {ratios[0]:.0f} by the clock, {ratios[1]:.0f} in CPU time"
    )
    gap = np.abs(curves["hotcoco"].precision - curves["pycocotools"].precision).max()
    summary = score(curves["hotcoco"], truth, found).summary
    console.print(f"largest difference of precision: {gap:.1e}; AP {summary['AP']:.2f}")


def new_table(title: str) -> Table:
    """A table of steps."""
    table = Table(title=title, title_justify="left", min_width=len(title))
    for heading in ("step", "clock, s", "CPU, s", "peak, GB"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    return table


def peak_gigabytes() -> float:
    """The most memory that this process has held, in 10^9 bytes; Linux says it.

    The peak of getrusage would begin at that of the process that started this one.
    """
    [line] = [s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s]
    return int(line.split()[1]) * 1024 / 1e9


def score_v3det(num_images: int) -> None:
    """Score both metrics of V3Det, and print time and memory of each."""
    console = Console()
    truth, found = synthetic(num_images, V3DET_DETECTIONS, vast_space(V3DET_CATEGORIES))
    table = new_table(
        f"{num_images:,} images, {len(truth.boxes):,} boxes, {len(found):,} detections, "
        f"{V3DET_CATEGORIES:,} categories"
    )
    table.add_row("the data", "", "", f"{peak_gigabytes():.2f}")
    results: dict[str, Any] = {}
    total = np.zeros(2)
    for protocol in v3det_protocols(truth):
        results[protocol.key], *seconds = timed(lambda p=protocol: p.rule(truth, found, results))
        total += seconds
        row = (protocol.title, *(f"{s:.1f}" for s in seconds), f"{peak_gigabytes():.2f}")
        table.add_row(*row)
    table.add_row("both", *(f"{s:.1f}" for s in total), f"{peak_gigabytes():.2f}")
    console.print(table)
    for key, scores in results.items():
        console.print(key, {name: round(value, 2) for name, value in scores.summary.items()})


def write_and_read(num_images: int) -> None:
    """Time both kinds of results files; each is read in a process of its own."""
    truth, found = synthetic(num_images, V3DET_DETECTIONS, vast_space(V3DET_CATEGORIES))
    # As models predict them. Reading needs no boxes of the ground truth.
    boxes, scores = (a.astype(np.float32).astype(np.float64) for a in (found.boxes, found.scores))
    found = replace(found, boxes=boxes, scores=scores)
    table = new_table(f"results files of {len(found):,} detections")
    with tempfile.TemporaryDirectory() as name:
        for path in (Path(name) / "results.json", Path(name) / "results.npz"):

            def write(path: Path = path) -> None:
                if path.suffix == ".json":
                    write_results_json(path, found, truth)
                else:
                    write_store(path, found, truth, dataset="synthetic")

            _, *seconds = timed(write)
            size = f"{path.stat().st_size / 1e9:.2f} GB"
            table.add_row(f"write {path.suffix}, {size}", *(f"{s:.1f}" for s in seconds), "")
        Console().print(table)
        for path in Path(name).iterdir():
            subprocess.run([sys.executable, *sys.argv, "--part", str(path)], check=True)


def read_file(path: Path, num_images: int) -> None:
    """Time the reading of a results file that `write_and_read` wrote."""
    truth, _ = synthetic(num_images, BOXES_PER_IMAGE, plain_space(V3DET_CATEGORIES))
    before = peak_gigabytes()
    found, *seconds = timed(lambda: read_results(path, truth))
    table = new_table(f"{len(found):,} detections, {before:.2f} GB before")
    row = (f"read {path.suffix}", *(f"{s:.1f}" for s in seconds), f"{peak_gigabytes():.2f}")
    table.add_row(*row)
    Console().print(table)


def compare_v3det(num_images: int) -> None:
    """Time plain V3Det AP by hotcoco and by pycocotools, which gets all categories at once."""
    console = Console()
    truth, found = synthetic(num_images, V3DET_DETECTIONS, vast_space(V3DET_CATEGORIES))
    limits = (VAST_MAX_DETS,)

    def by_hotcoco() -> Any:
        return accumulate(truth, found, max_dets=limits)

    def by_pycocotools() -> Any:
        every = np.arange(V3DET_CATEGORIES)
        return run_pycocotools(truth, found, every, "bbox", limits)

    table = new_table(f"{num_images:,} images, {len(found):,} detections, plain AP")
    seconds: dict[str, list[list[float]]] = {"hotcoco": [], "pycocotools": []}
    for name in ("hotcoco", "hotcoco", "pycocotools", "hotcoco", "hotcoco"):
        work = by_hotcoco if name == "hotcoco" else by_pycocotools
        curves, *times = timed(work)
        seconds[name].append(times)
        table.add_row(name, *(f"{s:.2f}" for s in times), f"{peak_gigabytes():.2f}")
        if name == "pycocotools":
            precision = curves["precision"]
    console.print(table)
    fast, reference = (np.median(seconds[name], axis=0) for name in ("hotcoco", "pycocotools"))
    ratios = reference / fast
    console.print(
        f"pycocotools / hotcoco: {ratios[0]:.0f} by the clock, {ratios[1]:.0f} in CPU time"
    )
    gap = np.abs(curves.precision - precision).max()
    console.print(f"largest difference of precision: {gap:.1e}")


def main() -> None:
    """Run what is asked for; each part of the V3Det size runs in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image (default: 100)")
    parser.add_argument("--categories", type=int, default=80)
    parser.add_argument("--v3det-size", action="store_true", help="both metrics of V3Det")
    parser.add_argument(
        "--reference-images",
        type=int,
        default=500,
        help="with --v3det-size: images for pycocotools, 0 for none (default: 500, about 8 GB)",
    )
    parser.add_argument(
        "--results-files", action="store_true", help="write and read results of V3Det's size"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "score":
        score_v3det(V3DET_IMAGES)
    elif arguments.part == "compare":
        compare_v3det(arguments.reference_images)
    elif arguments.part:
        read_file(Path(arguments.part), V3DET_IMAGES)
    elif arguments.results_files:
        write_and_read(V3DET_IMAGES)
    elif arguments.v3det_size:
        for part in ("score", "compare") if arguments.reference_images else ("score",):
            subprocess.run([sys.executable, *sys.argv, "--part", part], check=True)
    else:
        compare_coco(arguments.images, arguments.detections, arguments.categories)


if __name__ == "__main__":
    main()
