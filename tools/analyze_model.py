#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Count a model's parameters, floating point operations and activations, and show its structure."""

import argparse
import logging
import sys
from pathlib import Path

from detectron2.modeling import build_model
from tabulate import tabulate

import vastdet  # noqa: F401  (registers the models)
from vastdet.engine.analysis import Analysis, analyze, count_parameters
from vastdet.engine.config_files import load_config, merge_opts, with_all_weights
from vastdet.engine.tools import exit_status
from vastdet.files import write_json

TASKS = ("parameters", "flops", "structure")
EPILOG = """
One multiply-add is one flop. Counts are of inference on one random image with random weights; those
of a two-stage model vary with its proposals.

Example:
    $ analyze_model.py --config-file configs/FCOS/fcos_R_50_FPN_1x.yaml --depth 1 \\
        --image-size 800 1333
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML", help="the model's config")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=TASKS[:2], help="(default: parameters flops)"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        action="append",
        metavar=("HEIGHT", "WIDTH"),
        help="may be given several times (default: 800 1280)",
    )
    parser.add_argument("--depth", type=int, default=2, metavar="N", help="modules (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the counts here")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides as KEY VALUE ...")
    return parser.parse_args(arguments)


def print_counts(analysis: Analysis) -> None:
    """The table by module, the flops by operator, and what was not counted."""
    rows = [
        [
            "  " * m.depth + (m.name.rpartition(".")[2] or "model"),
            m.kind,
            f"{m.num_parameters / 1e6:.3f}",
            f"{m.num_flops / 1e9:.3f}",
            f"{m.num_activations / 1e6:.3f}",
        ]
        for m in analysis.modules
    ]
    height, width = analysis.image_size
    print(f"\nOne image of {height}x{width} pixels")
    headers = ["module", "type", "parameters, M", "flops, G", "activations, M"]
    align = ("left", "left", "right", "right", "right")
    print(tabulate(rows, headers, colalign=align, disable_numparse=True, preserve_whitespace=True))
    operators = ", ".join(f"{k} {v / 1e9:.3f} G" for k, v in analysis.flops_by_operator.items())
    print(f"Flops by operator: {operators}")
    missed = ", ".join(f"{name} x{count}" for name, count in analysis.not_counted.items())
    print(f"Not counted: {missed or 'nothing'}")


def print_parameters(rows: list) -> None:
    """The totals."""
    total = rows[0]
    frozen = total.num_parameters - total.num_trainable
    print(
        f"Parameters: {total.num_parameters:,} ({total.num_trainable:,} trained, {frozen:,} frozen)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Build, count, print."""
    cfg = load_config(arguments.config_file, arguments.opts)
    merge_opts(cfg, ["MODEL.DEVICE", "cpu"])
    # Counts do not depend on the weights, so none are fetched, and none are read.
    model = build_model(with_all_weights(cfg, "not read"))
    if "structure" in arguments.tasks:
        print(model)
    if "parameters" in arguments.tasks:
        print_parameters(count_parameters(model, max_depth=0))
    sizes = arguments.image_size or [(800, 1280)]
    analyses = []
    if "flops" in arguments.tasks:
        for height, width in sizes:
            analyses.append(
                analyze(model, cfg, image_size=(height, width), max_depth=arguments.depth)
            )
            print_counts(analyses[-1])
    if arguments.json:
        content = [
            {
                "image_size": a.image_size,
                "modules": [vars(m) for m in a.modules],
                "flops_by_operator": a.flops_by_operator,
                "not_counted": a.not_counted,
            }
            for a in analyses
        ]
        write_json(arguments.json, content, indent=1)


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    logging.basicConfig(level=logging.ERROR)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
