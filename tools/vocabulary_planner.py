#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Predict what a detector costs by its number of categories, and how many fit into a memory."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate

import vastdet  # noqa: F401  (registers the models)
from vastdet.engine.model_benchmark import load_configs
from vastdet.engine.tools import exit_status
from vastdet.engine.vocabulary_measure import Measurement, Rates, measure, measured_slopes
from vastdet.engine.vocabulary_models import PASSES
from vastdet.engine.vocabulary_plan import COUNTED, VocabularyPlan, plan
from vastdet.files import write_json
from vastdet.models.cq_dino.scoring import DEFAULT_CHUNK

logger = logging.getLogger(__name__)

# V3Det's, and a hundred times as many as a thousand.
DEFAULT_CATEGORIES = (1_000, 13_204, 100_000)
DEFAULT_MEASURED = (4_096, 16_384)
EPILOG = """
Each model is built for a few small made-up vocabularies (--counted), with a balanced tree where it
reads one, and its pass over one image is counted operator by operator: by shapes alone where these
decide, else in a run on the CPU, which the table says. Memory is that of all tensors at the peak of
the pass: weights, what is kept for inference, in training gradients and the optimizer's state. What
kernels take for themselves, and the process, is not in it. Time a category is that of its products
at this machine's speed plus that of its memory traffic. KEY VALUE overrides come last.

Example:
    $ vocabulary_planner.py --config-file configs/DINO/dino_R_50_4scale_36ep_v3det.yaml \\
        --memory 24 --image-size 800 1333
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", nargs="+", required=True, metavar="YAML", help="models")
    parser.add_argument(
        "--categories",
        nargs="+",
        type=int,
        default=DEFAULT_CATEGORIES,
        metavar="N",
        help="vocabularies to predict (default: 1000 13204 100000)",
    )
    parser.add_argument("--task", choices=sorted(PASSES), default="inference")
    parser.add_argument("--memory", type=float, metavar="GB", help="how many categories fit in it?")
    parser.add_argument(
        "--image-size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument(
        "--counted",
        type=int,
        nargs=3,
        default=COUNTED,
        metavar="N",
        help="vocabularies that are counted, of CQ-DINO whole pieces of 1,024 (default: 2048 4096 "
        "6144)",
    )
    parser.add_argument(
        "--measure",
        type=int,
        nargs="*",
        metavar="N",
        help="also run these vocabularies on the CPU (default: 4096 16384)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="torch threads (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides for all, KEY VALUE ...")
    return parser.parse_args(arguments)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, names on the left and numbers on the right."""
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def plan_rows(found: VocabularyPlan, categories: Sequence[int], rates: Rates) -> list[list[str]]:
    """Predictions, a row for each vocabulary."""
    return [
        [
            found.name,
            f"{n:,}",
            f"{found.num_parameters.at(n) / 1e6:,.2f}",
            f"{found.num_parameters.slope:,.0f}",
            f"{found.memory(n) / 1e9:.3f}",
            f"{found.memory_slope(n) / 1e3:.2f}",
            f"{rates.seconds_slope(found) * 1e6:.1f}",
            "shapes" if found.from_shapes else "a run",
            f"{100 * found.deviation:.2f}%",
        ]
        for n in categories
    ]


PLAN_HEADERS = (
    "model",
    "categories",
    "parameters, M",
    "parameters/category",
    "memory, GB",
    "kB/category",
    "us/category",
    "counted by",
    "deviation",
)


def measured_rows(found: VocabularyPlan, measured: Sequence[Measurement]) -> list[list[str]]:
    """What was measured beside what was predicted, a row for each vocabulary."""
    return [
        [
            found.name,
            f"{x.categories:,}",
            f"{x.memory / 1e9:.3f}",
            f"{found.memory(x.categories) / x.memory:.2f}",
            f"{x.seconds:.3f}",
        ]
        for x in measured
    ]


def slope_row(found: VocabularyPlan, measured: Sequence[Measurement], rates: Rates) -> list[str]:
    """Measured and predicted costs of one more category."""
    num_bytes, seconds = measured_slopes(measured)
    first, last = (f(x.categories for x in measured) for f in (min, max))
    predicted = (found.memory(last) - found.memory(first)) / (last - first)
    return [
        found.name,
        f"{num_bytes / 1e3:.2f}",
        f"{predicted / num_bytes:.2f}",
        f"{seconds * 1e6:.1f}",
        f"{rates.seconds_slope(found) / seconds:.2f}",
    ]


def as_dict(found: VocabularyPlan, categories: Sequence[int], rates: Rates) -> dict[str, Any]:
    """A plan as plain data."""
    lines = ("num_parameters", "weight_bytes", "num_flops", "bytes_moved")
    return {
        "name": found.name,
        "task": found.task,
        **{key: vars(getattr(found, key)) for key in lines},
        "counted_by_shapes": found.from_shapes,
        "deviation": found.deviation,
        "seconds_per_category": rates.seconds_slope(found),
        "predictions": [
            {
                "categories": n,
                "num_parameters": found.num_parameters.at(n),
                "memory_bytes": found.memory(n),
                "bytes_per_category": found.memory_slope(n),
            }
            for n in categories
        ],
    }


def warn_of_parts(name: str, cfg: CfgNode, arguments: argparse.Namespace) -> None:
    """Log it where a model that scores categories in pieces is counted for parts of a piece."""
    has_pieces = cfg.MODEL.META_ARCHITECTURE == "CQDINO" and arguments.task == "inference"
    if has_pieces and any(n % DEFAULT_CHUNK for n in arguments.counted):
        logger.warning(
            f"{name} scores categories in pieces of {DEFAULT_CHUNK:,}, and is counted for "
            f"{list(arguments.counted)}: its memory is predicted too high; give multiples of "
            f"{DEFAULT_CHUNK:,} to --counted"
        )


def run(arguments: argparse.Namespace) -> None:
    """Predict, measure if wanted, print and write."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.memory is not None and not arguments.memory > 0:
        raise ValueError(f"--memory {arguments.memory:g}: give a number of GB above 0")
    if min(arguments.categories) < 1:
        raise ValueError(f"--categories {min(arguments.categories)}: give numbers of at least 1")
    size = (arguments.image_size[0], arguments.image_size[1])
    configs = load_configs(arguments.config_file, [], arguments.opts, "cpu")
    for name, cfg in configs.items():
        warn_of_parts(name, cfg, arguments)
    rates = Rates.measure()
    plans = {
        name: plan(cfg, name, task=arguments.task, image_size=size, counted=arguments.counted)
        for name, cfg in configs.items()
    }
    print(f"{arguments.task}, one image of {size[0]}x{size[1]} pixels\n")
    rows = [row for x in plans.values() for row in plan_rows(x, arguments.categories, rates)]
    print(table(PLAN_HEADERS, rows))
    content = [as_dict(x, arguments.categories, rates) for x in plans.values()]
    if arguments.memory is not None:
        print(f"\nLargest vocabulary in {arguments.memory:g} GB:")
        for found, entry in zip(plans.values(), content, strict=True):
            entry["largest"] = found.largest(1e9 * arguments.memory)
            print(f"  {found.name}: {entry['largest']:,} categories")
    if arguments.measure is not None:
        numbers = arguments.measure or DEFAULT_MEASURED
        measured = {n: measure(x, arguments.task, size, numbers) for n, x in configs.items()}
        print_measured(plans, measured, rates)
        for entry in content:
            entry["measured"] = [vars(x) for x in measured[entry["name"]]]
    if arguments.json:
        write_json(arguments.json, {"image_size": size, "plans": content}, indent=1)


def print_measured(
    plans: dict[str, VocabularyPlan], measured: dict[str, list[Measurement]], rates: Rates
) -> None:
    """The tables of what was measured."""
    rows = [row for name in plans for row in measured_rows(plans[name], measured[name])]
    headers = ("measured", "categories", "memory, GB", "predicted/measured", "processor s")
    print(f"\n{table(headers, rows)}\n")
    headers = ("one more category", "kB", "predicted/measured", "us", "predicted/measured")
    print(table(headers, [slope_row(plans[name], measured[name], rates) for name in plans]))


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    logging.basicConfig(level=logging.ERROR)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
