# SPDX-License-Identifier: Apache-2.0
"""What the command lines in tools/ share."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from detectron2.utils.logger import _cached_log_stream, setup_logger

from vastdet.data import register_coco, register_v3det
from vastdet.evaluation.ground_truth import GroundTruth, from_json, ground_truth_of_dataset

# Detectron2's, in the folder of a run.
LOG_FILE = "log.txt"


def add_register_argument(
    parser: argparse._ActionsContainer,
    help: str = "register a dataset in COCO format; may be given several times",
) -> None:
    """Add --register and --register-v3det to a parser or a group; `register_datasets` acts on them.

    Both are collected in `register`, as lists of the name and two or three paths.
    """
    parser.add_argument(
        "--register",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGES"),
        help=help,
    )
    parser.add_argument(
        "--register-v3det",
        dest="register",
        nargs=4,
        action="append",
        metavar=("NAME", "JSON", "IMAGES", "TREE"),
        help="the same in V3Det's format, with its category tree and by its rules of evaluation",
    )


def register_datasets(arguments: argparse.Namespace) -> None:
    """Register the datasets of both options; spawned processes need it again."""
    for name, *paths in arguments.register:
        (register_v3det if len(paths) > 2 else register_coco)(name, *paths)


def add_results_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --dataset or --annotations, --results and --iou-type: results files and their truth."""
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--dataset", metavar="NAME", help="a registered dataset")
    truth.add_argument("--annotations", metavar="JSON", help="a COCO-format annotation file")
    parser.add_argument(
        "--results",
        metavar="FILE",
        required=True,
        nargs="+",
        type=Path,
        help="detections: COCO's JSON or .npz; several files are parts of one dataset's results, "
        "by image or by category",
    )
    parser.add_argument(
        "--iou-type", choices=("bbox", "segm"), default="bbox", help="boxes or masks"
    )


def load_ground_truth(arguments: argparse.Namespace) -> tuple[GroundTruth, str]:
    """What --dataset or --annotations names, and the dataset's name."""
    if arguments.annotations:
        return from_json(arguments.annotations), Path(arguments.annotations).stem
    return ground_truth_of_dataset(arguments.dataset), arguments.dataset


def close_logs() -> None:
    """Take from the loggers what a run gave them: the next one would print each line twice.

    The log files are closed, so that a folder that is removed and used again gets a new one.
    """
    for name in ("vastdet", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
            # A StreamHandler leaves its stream open.
            stream = getattr(handler, "stream", None)
            if stream is not None and is_log_file(stream):
                stream.close()
    setup_logger.cache_clear()
    # Detectron2 keeps the files that it opened by their names.
    _cached_log_stream.cache_clear()


def is_log_file(stream: IO[str]) -> bool:
    """Whether a stream is a log file that Detectron2 opened: log.txt, log.txt.rank1 and so on."""
    if stream in (sys.stdout, sys.stderr):
        return False
    return LOG_FILE in Path(str(getattr(stream, "name", ""))).name


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
