#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare how detectors share the gradient of their class logits between positives and negatives.

Each config is trained for some iterations, from the same seed and on the same images in the same
order, while the gradients of its sigmoid classifier are measured (Sun et al. 2025, section 3.1).
"""

import argparse
import logging
import sys
from pathlib import Path

from vastdet.engine.gradient_comparison import comparison_config, train_for_gradients
from vastdet.engine.gradient_report import read_runs, write_gradient_report
from vastdet.engine.tools import add_register_argument, exit_status, register_datasets

EPILOG = """
Written into OUTPUT: ratio.png, hard_negatives.png, categories.png, gradients.md, and for each run
RUN/gradients.json with everything measured. Runs that OUTPUT already has are drawn beside the new
ones. KEY VALUE overrides for all runs come last, after another option than --config-file or --run.

Examples:
    $ analyze_gradients.py --config-file configs/quick/dino_generated.yaml \\
        configs/quick/fcos_generated.yaml --iterations 150 --output output/gradients

    $ analyze_gradients.py --iterations 150 --output output/gradients \\
        --run focal configs/quick/dino_generated.yaml \\
        --run ce configs/quick/dino_generated.yaml MODEL.DINO.LOSS.CLASS_LOSS cross_entropy

    $ analyze_gradients.py --from output/gradients output/my_training --output output/comparison
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", nargs="+", default=[], metavar="YAML", help="runs named after their files"
    )
    parser.add_argument(
        "--run",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "YAML"),
        help="a run with a name and overrides of its own: NAME YAML KEY VALUE ...",
    )
    parser.add_argument(
        "--from",
        nargs="+",
        dest="sources",
        metavar="DIR",
        help="train nothing; draw what these folders, or folders in them, hold",
    )
    parser.add_argument("--iterations", type=int, default=500, metavar="N", help="(default: 500)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all runs (default: 1)")
    add_register_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides for all, KEY VALUE ...")
    return parser.parse_args(arguments)


def asked_runs(arguments: argparse.Namespace) -> dict[str, tuple[str, list[str]]]:
    """Config file and own overrides by the name of the run.

    Raises:
        ValueError: a --run without a YAML, or two runs of one name.
    """
    asked = [(Path(file).stem, file, []) for file in arguments.config_file]
    for name, *rest in arguments.run:
        if not rest:
            raise ValueError(f"--run {name}: expected NAME YAML KEY VALUE ...")
        asked.append((name, rest[0], rest[1:]))
    names = [name for name, *_ in asked]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several runs are called {twice[0]}; name them by --run")
    return {name: (file, opts) for name, file, opts in asked}


def run(arguments: argparse.Namespace) -> None:
    """Train, draw, print the table."""
    asked = asked_runs(arguments)
    if bool(asked) == bool(arguments.sources):
        raise ValueError("give either runs (--config-file, --run) or folders to draw (--from)")
    if arguments.sources:
        print(write_gradient_report(read_runs(arguments.sources), arguments.output))
        return
    register_datasets(arguments)
    # All configs are read before the first one is trained.
    configs = [
        comparison_config(
            file,
            [*own, *arguments.opts],
            output=arguments.output / name,
            seed=arguments.seed,
        )
        for name, (file, own) in asked.items()
    ]
    for cfg in configs:
        train_for_gradients(cfg, arguments.iterations)
    print(write_gradient_report(read_runs([arguments.output]), arguments.output))


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    logging.basicConfig(level=logging.ERROR)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
