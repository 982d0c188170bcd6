#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Make one results file of several, or turn one into the other format."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

import vastdet  # noqa: F401  (registers the datasets)
from vastdet.engine.tools import add_results_arguments, exit_status, load_ground_truth
from vastdet.evaluation.results_file import read_results, write_results_json
from vastdet.evaluation.results_store import write_store


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Check results files of one dataset and write them as one, in COCO's JSON (for "
        "an evaluation server) or as .npz (small, and read in seconds).",
        epilog="example: tools/merge_results.py --dataset v3det_val --results a.npz b.npz "
        "--output results.json",
    )
    add_results_arguments(parser)
    parser.add_argument(
        "--output", metavar="FILE", required=True, type=Path, help="a .json or .npz file"
    )
    return parser.parse_args(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Read, write, say what was written."""
    output = arguments.output
    if output.suffix not in (".json", ".npz"):
        raise ValueError(f"{output} ends in {output.suffix!r}, expected .json or .npz")
    console = Console()
    with console.status("reading ground truth") as status:
        ground_truth, dataset = load_ground_truth(arguments)
        detections = read_results(
            arguments.results,
            ground_truth,
            iou_type=arguments.iou_type,
            progress=lambda share: status.update(f"reading detections: {share:.0%}"),
        )
        status.update(f"writing {output.name}")
        if output.suffix == ".json":
            write_results_json(output, detections, ground_truth)
        else:
            write_store(output, detections, ground_truth, dataset=dataset)
    console.print(f"{len(detections):,} detections in {output}", highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
