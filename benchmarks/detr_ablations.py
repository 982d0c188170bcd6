# SPDX-License-Identifier: Apache-2.0
"""What denoising, two-stage queries and look forward twice do for DINO, and DINO beside DETR.

Every variant trains from random weights on the blood-cell photographs (bccd of
datasets/README.md) for the same time: the seconds of their training steps are measured in turns,
and the slower has fewer iterations. One thread and processor time, so that other work on the
machine changes little.

    DETECTRON2_DATASETS=FOLDER python benchmarks/detr_ablations.py --minutes 7 --seeds 1 2 3

Runs that are done are in --output and are not run again; two processes may share the work.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY

from vastdet import model_zoo
from vastdet.detr.query_source import AnchorsWithContent
from vastdet.detr.refinement import IterativeRefinement
from vastdet.engine.config_files import choose_device, merge_opts
from vastdet.engine.model_benchmark import Workload, make_training_step
from vastdet.engine.trainer import Trainer
from vastdet.files import write_json
from vastdet.models.dino.dino import DINO, LOGIT_EPS

BATCH_SIZE, HEIGHT, WIDTH, NUM_QUERIES = 8, 96, 128, 60
TIMING_ROUNDS = 5
METRICS = ("AP", "AP50")


@META_ARCH_REGISTRY.register()
class DINOFixedQueries(DINO):
    """DINO without its first stage: boxes and contents of the queries are learned."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `DINO`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """DINO's parts with another query source."""
        parts = super().from_config(cfg)
        node = cfg.MODEL.DINO
        parts["transformer"].query_source = AnchorsWithContent(node.EMBED_DIM, node.NUM_QUERIES)
        return parts


@META_ARCH_REGISTRY.register()
class DINOLookForwardOnce(DINO):
    """DINO whose layers each correct boxes that get no gradient from them."""

    @configurable
    def __init__(self, **parts: Any) -> None:
        """See `DINO`."""
        super().__init__(**parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """DINO's parts with another refinement."""
        parts = super().from_config(cfg)
        parts["transformer"].decoder.refinement = IterativeRefinement(LOGIT_EPS)
        return parts


# What DETR's config lacks to train on the same data as DINO's.
ON_BLOOD_CELLS = {
    "DATASETS.TRAIN": "('bccd_train',)",
    "DATASETS.TEST": "('bccd_val',)",
    "INPUT.COLOR_JITTER.BRIGHTNESS": 0.2,
    "INPUT.COLOR_JITTER.CONTRAST": 0.2,
    "INPUT.COLOR_JITTER.SATURATION": 0.2,
}
# Name -> config and its overrides.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DINO": ("quick/dino_bccd.yaml", {}),
    "DINO without denoising": ("quick/dino_bccd.yaml", {"MODEL.DINO.DENOISING.NUM_QUERIES": 0}),
    "DINO without two stages": (
        "quick/dino_bccd.yaml",
        {"MODEL.META_ARCHITECTURE": "DINOFixedQueries"},
    ),
    "DINO without look forward twice": (
        "quick/dino_bccd.yaml",
        {"MODEL.META_ARCHITECTURE": "DINOLookForwardOnce"},
    ),
    "DETR": ("quick/detr_generated.yaml", ON_BLOOD_CELLS),
}


def config_of(variant: str) -> CfgNode:
    """The config of a variant on small images, without schedule and seed."""
    file, overrides = VARIANTS[variant]
    node = "DETR" if variant == "DETR" else "DINO"
    cfg = model_zoo.get_config(file)
    settings = {
        "SOLVER.IMS_PER_BATCH": BATCH_SIZE,
        "SOLVER.REFERENCE_BATCH_SIZE": BATCH_SIZE,
        f"MODEL.{node}.NUM_QUERIES": NUM_QUERIES,
        f"MODEL.{node}.NUM_CLASSES": 3,
        "INPUT.MIN_SIZE_TRAIN": f"({HEIGHT - 8}, {HEIGHT}, {HEIGHT + 8})",
        "INPUT.MAX_SIZE_TRAIN": 2 * WIDTH,
        "INPUT.MIN_SIZE_TEST": HEIGHT,
        "INPUT.MAX_SIZE_TEST": 2 * WIDTH,
        "TEST.EVAL_PERIOD": 0,
        "SOLVER.CHECKPOINT_PERIOD": 10**6,
        "DATALOADER.NUM_WORKERS": 0,
        **overrides,
    }
    merge_opts(cfg, [part for pair in settings.items() for part in pair])
    return choose_device(cfg)


def seconds_per_step() -> dict[str, float]:
    """Variant -> median processor seconds of a training step, measured in turns."""
    workload = Workload(BATCH_SIZE, (HEIGHT, WIDTH))
    steps = {name: make_training_step(config_of(name), workload) for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for round_number in range(TIMING_ROUNDS + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if round_number:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def train(variant: str, seed: int, iterations: int, folder: Path) -> None:
    """Train and score one variant; write the result into `folder`."""
    cfg = config_of(variant)
    merge_opts(
        cfg,
        ["SEED", seed, "SOLVER.MAX_ITER", iterations, "OUTPUT_DIR", str(folder)],
    )
    torch.manual_seed(seed)
    start = time.process_time()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    scores = trainer.train()
    assert scores is not None
    result = {key: scores["bbox"][key] for key in METRICS}
    write_json(
        folder / "result.json",
        {**result, "iterations": iterations, "processor_seconds": time.process_time() - start},
    )


def run_folder(output: Path, variant: str, seed: int) -> Path:
    """The folder of one run."""
    return output / f"{variant.replace(' ', '_')}_{seed}"


def run_all(options: argparse.Namespace, seconds: dict[str, float]) -> None:
    """Train what no other process has begun, each in a process of its own, seed by seed."""
    for seed in options.seeds:
        for variant in VARIANTS:
            folder = run_folder(options.output, variant, seed)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            iterations = round(60 * options.minutes / seconds[variant])
            with (folder / "output.txt").open("w") as log:
                subprocess.run(
                    [
                        *(sys.executable, __file__, "--output", str(options.output)),
                        *("--one", variant, str(seed), str(iterations)),
                    ],
                    check=True,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )


def print_table(output: Path) -> None:
    """Mean and spread of each variant over the seeds that are done."""
    print("| variant | iterations | processor minutes | seeds | AP | AP50 |")
    print("|---|---|---|---|---|---|")
    for variant in VARIANTS:
        files = sorted(output.glob(f"{variant.replace(' ', '_')}_[0-9]*/result.json"))
        results = [json.loads(file.read_text()) for file in files]
        if not results:
            continue
        minutes = statistics.mean(result["processor_seconds"] for result in results) / 60
        cells = [mean_and_range([result[metric] for result in results]) for metric in METRICS]
        print(
            f"| {variant} | {results[0]['iterations']} | {minutes:.1f} | {len(results)} | "
            + " | ".join(cells)
            + " |"
        )


def mean_and_range(values: list[float]) -> str:
    """As a cell of the table."""
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Measure, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7, help="of training steps, on one core")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path("output/detr_ablations"))
    parser.add_argument("--table", action="store_true", help="only print what is done")
    parser.add_argument("--one", nargs=3, metavar=("VARIANT", "SEED", "ITERATIONS"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        variant, seed, iterations = options.one
        folder = run_folder(options.output, variant, int(seed))
        train(variant, int(seed), int(iterations), folder)
        return
    if not options.table:
        options.output.mkdir(parents=True, exist_ok=True)
        timings = options.output / "seconds_per_step.json"
        if not timings.exists():
            write_json(timings, seconds_per_step())
        run_all(options, json.loads(timings.read_text()))
    print_table(options.output)


if __name__ == "__main__":
    main()
