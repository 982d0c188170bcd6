#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write a training run as one self-contained web page."""

import argparse
import logging
import sys
from pathlib import Path

from vastdet.engine.tools import add_register_argument, exit_status, register_datasets
from vastdet.report import write_report
from vastdet.report.page import DEFAULT_NUM_PICTURES

EPILOG = """
Example:
    $ make_report.py --output output/demo --title "A first detector"
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder of the run (OUTPUT_DIR)"
    )
    parser.add_argument("--title", default="", help="heading (default: architecture and dataset)")
    parser.add_argument(
        "--pictures",
        type=int,
        default=DEFAULT_NUM_PICTURES,
        metavar="N",
        help=f"how many pictures to show (default: {DEFAULT_NUM_PICTURES})",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help="score from which detections show at first (default: where F1 is highest)",
    )
    parser.add_argument(
        "--page", type=Path, metavar="HTML", help="file to write (default: DIR/index.html)"
    )
    add_register_argument(parser, "register the evaluated dataset, to show its pictures")
    return parser.parse_args(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Write the page."""
    register_datasets(arguments)
    page = write_report(
        arguments.output,
        title=arguments.title,
        num_pictures=arguments.pictures,
        score_threshold=arguments.score_threshold,
        page=arguments.page,
    )
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
