# SPDX-License-Identifier: Apache-2.0
"""What the command lines in tools/ share."""

import argparse
import sys
from collections.abc import Callable

from vastdet.data import register_coco


def add_register_argument(
    parser: argparse._ActionsContainer,
    help: str = "register a dataset in COCO format; may be given several times",
) -> None:
    """Add --register to a parser or a group; `register_datasets` acts on it."""
    parser.add_argument(
        "--register",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGES"),
        help=help,
    )


def register_datasets(arguments: argparse.Namespace) -> None:
    """Register the datasets of --register; spawned processes need it again."""
    for name, json_file, image_root in arguments.register:
        register_coco(name, json_file, image_root)


def exit_status(run: Callable[[], int | None]) -> int:
    """Call `run`; return its status (None: 0), 2 for wrong input, 130 when it is interrupted.

    Wrong input, a ValueError or an OSError, is reported in one line.
    """
    try:
        return run() or 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
