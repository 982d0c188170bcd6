#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write a training run as one self-contained web page."""

import argparse
import logging
import sys
from pathlib import Path

from vastdet.engine.command_line import register_datasets
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
    parser.add_argument(
        "--register",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGES"),
        help="register the evaluated dataset, in COCO format, to show its pictures",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Write the page; 0 done, 2 wrong input."""
    found = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        register_datasets(found)
        page = write_report(
            found.output,
            title=found.title,
            num_pictures=found.pictures,
            score_threshold=found.score_threshold,
            page=found.page,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
