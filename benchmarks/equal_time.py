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
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from detectron2.config import CfgNode

from vastdet.engine.config_files import merge_opts
from vastdet.engine.model_benchmark import Workload, make_training_step
from vastdet.engine.trainer import Trainer
from vastdet.files import write_json

TIMING_ROUNDS = 5
# Of a variant's time, where it is trained in two stages.
FIRST_STAGE_SHARE = 0.3


def single_stage(variant: str) -> None:
    """The first stage of variants that have none."""


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
        first_stage_of: the config of the first stage of a variant, whose weights the variant starts
            from; None where there is none.
        opts: KEY VALUE pairs for the configs of all.
    """

    script: str
    variants: Sequence[str]
    config_of: Callable[[str], CfgNode]
    workload: Workload
    metrics: Sequence[str]
    arguments: Sequence[str] = ()
    first_stage_of: Callable[[str], CfgNode | None] = single_stage
    opts: Sequence[str] = ()

    def seconds_per_step(self) -> dict[str, float]:
        """Variant -> median processor seconds of a training step, measured in turns."""
        configs = {name: self.config_of(name) for name in self.variants}
        firsts = {first_stage_key(name): self.first_stage_of(name) for name in self.variants}
        configs |= {key: cfg for key, cfg in firsts.items() if cfg is not None}
        steps = {}
        for name, cfg in configs.items():
            # Where a training starts from does not change its time.
            merge_opts(cfg, [*self.opts, "MODEL.WEIGHTS", ""])
            steps[name] = make_training_step(cfg, self.workload)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for round_number in range(TIMING_ROUNDS + 1):
            for name, step in steps.items():
                start = time.process_time()
                step()
                if round_number:
                    seconds[name].append(time.process_time() - start)
        return {name: statistics.median(values) for name, values in seconds.items()}

    def train(
        self, variant: str, seed: int, iterations: int, first_iterations: int, folder: Path
    ) -> None:
        """Train and score one variant; write the result into `folder`."""
        start, weights = time.process_time(), []
        first = self.first_stage_of(variant)
        if first is not None:
            # Its logits are those of images, not of boxes.
            merge_opts(first, [*self.opts, "ANALYSIS.GRADIENTS.ENABLED", False])
            train_and_score(first, seed, first_iterations, folder / "first_stage")
            weights = ["MODEL.WEIGHTS", str(folder / "first_stage" / "model_final.pth")]
        cfg = self.config_of(variant)
        merge_opts(cfg, [*self.opts, *weights])
        scores = train_and_score(cfg, seed, iterations, folder)
        result = {key: number(scores, key) for key in self.metrics}
        write_json(
            folder / "result.json",
            {
                **result,
                "iterations": iterations,
                "first_iterations": first_iterations,
                "processor_seconds": time.process_time() - start,
            },
        )

    def num_iterations(
        self, variant: str, minutes: float, seconds: Mapping[str, float]
    ) -> tuple[int, int]:
        """Iterations of a variant, and of its first stage, from the seconds of their steps."""
        first = seconds.get(first_stage_key(variant))
        share = FIRST_STAGE_SHARE if first else 0.0
        return (
            round(60 * minutes * (1 - share) / seconds[variant]),
            round(60 * minutes * share / first) if first else 0,
        )

    def run_all(self, minutes: float, seeds: Sequence[int], output: Path) -> None:
        """Train what no other process has begun, each in a process of its own, seed by seed."""
        output.mkdir(parents=True, exist_ok=True)
        check_opts(output / "opts.json", self.opts)
        timings = output / "seconds_per_step.json"
        seconds = json.loads(timings.read_text()) if timings.exists() else {}
        untimed = [variant for variant in self.variants if variant not in seconds]
        if untimed:
            seconds |= replace(self, variants=untimed).seconds_per_step()
            write_json(timings, seconds)
        for seed in seeds:
            for variant in self.variants:
                folder = run_folder(output, variant, seed)
                try:
                    folder.mkdir()
                except FileExistsError:
                    continue
                iterations = self.num_iterations(variant, minutes, seconds)
                with (folder / "output.txt").open("w") as log:
                    subprocess.run(
                        [
                            *(sys.executable, self.script, *self.arguments),
                            *("--output", str(output)),
                            *("--one", variant, str(seed), *map(str, iterations)),
                            *self.opts,
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
            iterations = str(results[0]["iterations"])
            if results[0].get("first_iterations"):
                iterations = f"{results[0]['first_iterations']} + {iterations}"
            cells = [
                mean_and_range([result[metric] for result in results]) for metric in self.metrics
            ]
            print(
                f"| {variant} | {iterations} | {minutes:.1f} | {len(results)} | "
                + " | ".join(cells)
                + " |"
            )

    def main(self, options: argparse.Namespace) -> None:
        """Measure, train, print, as `argument_parser` has it."""
        torch.set_num_threads(1)
        study = replace(self, opts=options.opts, variants=chosen(self.variants, options))
        if options.one:
            variant, *numbers = options.one
            seed, iterations, first_iterations = map(int, numbers)
            folder = run_folder(options.output, variant, seed)
            study.train(variant, seed, iterations, first_iterations, folder)
            return
        if not options.table:
            study.run_all(options.minutes, options.seeds, options.output)
        study.print_table(options.output)


def chosen(variants: Sequence[str], options: argparse.Namespace) -> Sequence[str]:
    """The variants that the command line asks for; ValueError where it names another."""
    asked = options.one[:1] if options.one else options.variants or list(variants)
    unknown = sorted(set(asked) - set(variants))
    if unknown:
        raise ValueError(f"no variant {unknown[0]!r}; expected some of {', '.join(variants)}")
    return asked


def argument_parser(description: str, *, minutes: float, output: str) -> argparse.ArgumentParser:
    """The command line of a study."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="of training steps, on one core"
    )
    parser.add_argument(
        "--variants", nargs="+", metavar="VARIANT", help="those to train (default: all)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--table", action="store_true", help="only print what is done")
    parser.add_argument(
        "--one", nargs=4, metavar=("VARIANT", "SEED", "ITERATIONS", "FIRST_ITERATIONS")
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="KEY VALUE pairs for all, after an option other than --seeds and --variants",
    )
    return parser


def number(scores: Mapping[str, Mapping[str, float]], key: str) -> float:
    """The number at "task/metric" of an evaluator's results, NaN where it has none.

    A metric that ends in "#" is followed by a number of the variant's own there.
    """
    task, metric = key.split("/")
    pattern = re.compile(re.escape(metric.removesuffix("#")) + r"\d+" * metric.endswith("#"))
    found = [value for name, value in scores.get(task, {}).items() if pattern.fullmatch(name)]
    return float(found[0]) if found else float("nan")


def train_and_score(
    cfg: CfgNode, seed: int, iterations: int, folder: Path
) -> Mapping[str, Mapping[str, float]]:
    """Train by a config and return the evaluator's results, none without a test set."""
    merge_opts(cfg, ["SEED", seed, "SOLVER.MAX_ITER", iterations, "OUTPUT_DIR", str(folder)])
    torch.manual_seed(seed)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer.train() or {}


def check_opts(file: Path, opts: Sequence[str]) -> None:
    """Keep the KEY VALUE pairs of a folder; raise ValueError if it was begun with others."""
    if not file.exists():
        write_json(file, list(opts))
    known = json.loads(file.read_text())
    if known != list(opts):
        raise ValueError(f"{file.parent} was begun with {known}, not {list(opts)}; give another")


def first_stage_key(variant: str) -> str:
    """The name of a variant's first stage among the timings."""
    return f"{variant}, first stage"


def folder_name(variant: str) -> str:
    """A variant's name without what a shell minds."""
    return variant.replace(" ", "_").replace(",", "")


def run_folder(output: Path, variant: str, seed: int) -> Path:
    """The folder of one run."""
    return output / f"{folder_name(variant)}_{seed}"


def mean_and_range(values: list[float | None]) -> str:
    """As a cell of the table; files of results have None where a run has no such number."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
