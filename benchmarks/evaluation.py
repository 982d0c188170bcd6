#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Time COCO's AP by hotcoco and by pycocotools on the same synthetic detections.

The fast engine runs before and after the reference, so that a change in the machine's load shows.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vastdet.evaluation.confusion import confusion_matrix
from vastdet.evaluation.detections import Detections, results_json
from vastdet.evaluation.engines import Curves, accumulate
from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.metrics import score
from vastdet.vocabulary import CategorySpace

BOXES_PER_IMAGE = 7  # COCO val2017 has 36,781 boxes in 5,000 images


def synthetic(
    num_images: int, per_image: int, num_categories: int
) -> tuple[GroundTruth, Detections]:
    """Boxes in 640 x 480 images; 7 detections an image near a box, the others anywhere."""
    generator = np.random.default_rng(0)
    image = np.repeat(np.arange(num_images), BOXES_PER_IMAGE)
    category = generator.integers(0, num_categories, len(image))
    boxes = np.concatenate(
        [
            generator.uniform(0, 400, (len(image), 2)),
            np.exp(generator.uniform(2.3, 5.5, (len(image), 2))),
        ],
        axis=1,
    )
    truth = GroundTruth(
        space=CategorySpace.from_names([f"category {k}" for k in range(num_categories)]),
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
            [category, generator.integers(0, num_categories, clutter)]
        ),
        "boxes": np.concatenate([near, anywhere]),
        "scores": np.concatenate([generator.beta(4, 2, len(near)), generator.beta(1, 6, clutter)]),
    }
    order = np.argsort(columns["image_index"], kind="stable")
    return truth, Detections(**columns)[order]


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, the seconds on the clock and the seconds of CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - clock, time.process_time() - cpu


def main() -> None:
    """Time, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image (default: 100)")
    parser.add_argument("--categories", type=int, default=80)
    arguments = parser.parse_args()
    truth, found = synthetic(arguments.images, arguments.detections, arguments.categories)
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
        ("results as JSON", lambda: results_json(found, truth)),
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


if __name__ == "__main__":
    main()
