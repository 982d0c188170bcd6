#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Detect objects in pictures, videos or a camera's stream, and draw them."""

import argparse
import logging
import sys
from pathlib import Path

from vastdet.data import category_space
from vastdet.engine.config_files import load_config, merge_opts, set_num_classes
from vastdet.engine.demo import Outcome, detect_in_images, detect_in_video, find_images
from vastdet.engine.predictor import Predictor
from vastdet.engine.tools import add_register_argument, exit_status, register_datasets

EPILOG = """
Class names are taken from --classes, else from the first dataset of DATASETS.TEST (then
DATASETS.TRAIN) that is registered and fits the model (--register adds one), else classes are
numbered. What was used is printed.

Exit code: 0 done, 1 some inputs could not be read (they are listed), 2 none could, or a wrong
argument.

KEY VALUE overrides of the config come last, after another option than --input.

Example:
    $ demo.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth \\
        --input photos/ "more/*.png" --output output/detections
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML", help="the model's config")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint (default: MODEL.WEIGHTS)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="images, folders, globs")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument(
        "--webcam", nargs="?", type=int, const=0, metavar="N", help="record camera N (default: 0)"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="S",
        help="lowest score to show and write (default: 0.5)",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once")
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop a video after N frames")
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--classes", type=Path, metavar="TXT", help="class names, one a line")
    add_register_argument(names, "take class names from this dataset in COCO format")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides as KEY VALUE ...")
    found = parser.parse_args(arguments)
    if not 0 <= found.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold must lie in [0, 1]: {found.confidence_threshold}")
    if found.batch_size < 1:
        parser.error(f"--batch-size must be at least 1: {found.batch_size}")
    return found


def build_predictor(arguments: argparse.Namespace) -> Predictor:
    """The predictor of the command line, and a line on its names."""
    cfg = load_config(arguments.config_file, arguments.opts)
    names = None
    if arguments.classes:
        lines = arguments.classes.read_text("utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    if arguments.register:
        register_datasets(arguments)
        own = arguments.register[0][0]
        set_num_classes(cfg, len(category_space(own)))
        cfg.DATASETS.TEST = (own, *cfg.DATASETS.TEST)
    elif names is not None:
        set_num_classes(cfg, len(names))
    merge_opts(cfg, arguments.opts)  # an override wins over a count taken from names
    predictor = Predictor(cfg, arguments.weights, class_names=names)
    source = f"dataset {predictor.dataset}" if predictor.dataset else f"{arguments.classes}"
    if predictor.dataset is None and names is None:
        source = "number: no dataset of the config is registered here (--classes, --register)"
    print(f"{len(predictor.class_names)} classes, named by {source}")
    return predictor


def detect(arguments: argparse.Namespace) -> Outcome:
    """Detect, draw and write."""
    threshold = arguments.confidence_threshold
    if arguments.input is None:
        source = arguments.video_input if arguments.webcam is None else arguments.webcam
        return detect_in_video(
            build_predictor(arguments),
            source,
            arguments.output,
            confidence_threshold=threshold,
            max_frames=arguments.max_frames,
        )
    files, failures = find_images(arguments.input)
    outcome = Outcome()
    if files:
        outcome = detect_in_images(
            build_predictor(arguments),
            files,
            arguments.output,
            confidence_threshold=threshold,
            batch_size=arguments.batch_size,
        )
    outcome.failures[:0] = failures
    return outcome


def run(arguments: argparse.Namespace) -> int:
    """Detect, say what was done and what could not be read, and return the exit status."""
    outcome = detect(arguments)
    if outcome.num_done:
        what = "images" if arguments.input else "frames"
        counts = f"{len(outcome.detections)} detections in {outcome.num_done} {what}"
        print(f"{counts}: {arguments.output}")
    if outcome.failures:
        print(f"{len(outcome.failures)} inputs could not be read:", file=sys.stderr)
        for name, reason in outcome.failures:
            print(f"  {name}: {reason.removeprefix(f'{name}: ')}", file=sys.stderr)
    return outcome.exit_code


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
