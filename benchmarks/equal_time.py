# SPDX-License-Identifier: Apache-2.0
"""Variants of a detector that train for the same time, on one thread, and are compared by score.

The seconds of a training step are measured in turns, and the slower variant has fewer iterations:
processor time, so that other work on the machine changes little. Runs that are done are kept in a
folder and not run again; two processes may share the work.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode

from vastdet.engine.config_files import merge_opts
from vastdet.engine.model_benchmark import Workload, make_training_step
from vastdet.engine.trainer import Trainer
from vastdet.files import write_json

TIMING_ROUNDS = 5


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        script: the file that runs it, for the processes of the single runs.
        variants: their names.
        config_of: the config of a variant, without schedule and seed.
        workload: what a training step is timed with.
        metrics: which of the evaluator's numbers are kept, as "bbox/AP".
        arguments: of the script, that say which study this is.
    """

    script: str
    variants: Sequence[str]
    config_of: Callable[[str], CfgNode]
    workload: Workload
    metrics: Sequence[str]
    arguments: Sequence[str] = ()

    def seconds_per_step(self) -> dict[str, float]:
        """Variant -> median processor seconds of a training step, measured in turns."""
        steps = {
            name: make_training_step(self.config_of(name), self.workload) for name in self.variants
        }
        seconds: dict[str, list[float]] = {name: [] for name in self.variants}
        for round_number in range(TIMING_ROUNDS + 1):
            for name, step in steps.items():
                start = time.process_time()
                step()
                if round_number:
                    seconds[name].append(time.process_time() - start)
        return {name: statistics.median(values) for name, values in seconds.items()}

    def train(self, variant: str, seed: int, iterations: int, folder: Path) -> None:
        """Train and score one variant; write the result into `folder`."""
        cfg = self.config_of(variant)
        merge_opts(cfg, ["SEED", seed, "SOLVER.MAX_ITER", iterations, "OUTPUT_DIR", str(folder)])
        torch.manual_seed(seed)
        start = time.process_time()
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        scores = trainer.train()
        assert scores is not None
        result = {key: number(scores, key) for key in self.metrics}
        write_json(
            folder / "result.json",
            {**result, "iterations": iterations, "processor_seconds": time.process_time() - start},
        )

    def run_all(self, minutes: float, seeds: Sequence[int], output: Path) -> None:
        """Train what no other process has begun, each in a process of its own, seed by seed."""
        output.mkdir(parents=True, exist_ok=True)
        timings = output / "seconds_per_step.json"
        if not timings.exists():
            write_json(timings, self.seconds_per_step())
        seconds = json.loads(timings.read_text())
        for seed in seeds:
            for variant in self.variants:
                folder = run_folder(output, variant, seed)
                try:
                    folder.mkdir()
                except FileExistsError:
                    continue
                iterations = round(60 * minutes / seconds[variant])
                with (folder / "output.txt").open("w") as log:
                    subprocess.run(
                        [
                            *(sys.executable, self.script, *self.arguments),
                            *("--output", str(output)),
                            *("--one", variant, str(seed), str(iterations)),
                        ],
                        check=True,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )

    def print_table(self, output: Path) -> None:
        """Mean and range of each variant over the seeds that are done."""
        names = [metric.removeprefix("bbox/") for metric in self.metrics]
        print("| " + " | ".join(["variant", "iterations", "processor minutes", "seeds", *names]))
        print("|---" * (4 + len(names)) + "|")
        for variant in self.variants:
            files = sorted(output.glob(f"{folder_name(variant)}_[0-9]*/result.json"))
            results = [json.loads(file.read_text()) for file in files]
            if not results:
                continue
            minutes = statistics.mean(result["processor_seconds"] for result in results) / 60
            cells = [
                mean_and_range([result[metric] for result in results]) for metric in self.metrics
            ]
            print(
                f"| {variant} | {results[0]['iterations']} | {minutes:.1f} | {len(results)} | "
                + " | ".join(cells)
                + " |"
            )

    def main(self, options: argparse.Namespace) -> None:
        """Measure, train, print, as `argument_parser` has it."""
        torch.set_num_threads(1)
        if options.one:
            variant, seed, iterations = options.one
            folder = run_folder(options.output, variant, int(seed))
            self.train(variant, int(seed), int(iterations), folder)
            return
        if not options.table:
            self.run_all(options.minutes, options.seeds, options.output)
        self.print_table(options.output)


def argument_parser(description: str, *, minutes: float, output: str) -> argparse.ArgumentParser:
    """The command line of a study."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="of training steps, on one core"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--table", action="store_true", help="only print what is done")
    parser.add_argument("--one", nargs=3, metavar=("VARIANT", "SEED", "ITERATIONS"))
    return parser


def number(scores: Mapping[str, Mapping[str, float]], key: str) -> float:
    """The number at "task/metric" of an evaluator's results, NaN where it has none.

    A metric that ends in "#" is followed by a number of the variant's own there.
    """
    task, metric = key.split("/")
    pattern = re.compile(re.escape(metric.removesuffix("#")) + r"\d+" * metric.endswith("#"))
    found = [value for name, value in scores.get(task, {}).items() if pattern.fullmatch(name)]
    return float(found[0]) if found else float("nan")


def folder_name(variant: str) -> str:
    """A variant's name without what a shell minds."""
    return variant.replace(" ", "_").replace(",", "")


def run_folder(output: Path, variant: str, seed: int) -> Path:
    """The folder of one run."""
    return output / f"{folder_name(variant)}_{seed}"


def mean_and_range(values: list[float]) -> str:
    """As a cell of the table."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
