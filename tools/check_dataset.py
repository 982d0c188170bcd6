#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Check a dataset before training on it, and write a cleaned copy."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

import vastdet  # noqa: F401  (registers the datasets)
from vastdet.data.check import CheckedDataset, check_dataset, from_registered
from vastdet.engine.tools import exit_status
from vastdet.vocabulary import CategorySpace

EPILOG = """
Exit code: 0 no problems, 1 problems found (also when a cleaned copy was written), 2 wrong input.

Examples:

Everything, images included:
    $ check_dataset.py train.json images/

A quick look at the annotations, and a cleaned copy of them:
    $ check_dataset.py train.json --no-images --fix train_clean.json

Do train and val agree on their categories? Does the category tree fit?
    $ check_dataset.py val.json images/ --same-categories-as train.json --tree tree.json
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "annotations", nargs="?", metavar="JSON", help="a COCO-, LVIS- or V3Det-format file"
    )
    parser.add_argument("images", nargs="?", metavar="IMAGES", help="the folder of its images")
    parser.add_argument("--dataset", metavar="NAME", help="a registered dataset, instead of JSON")
    parser.add_argument("--no-images", action="store_true", help="do not look at the image files")
    parser.add_argument("--tree", metavar="JSON", help="a V3Det category tree to compare with")
    parser.add_argument(
        "--same-categories-as", metavar="JSON", help="another annotation file, for its categories"
    )
    parser.add_argument(
        "--box-format",
        choices=("auto", "xywh", "xyxy"),
        default="auto",
        help="what the numbers of a bbox mean; auto is xywh, COCO's, with a guard (default: auto)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the report here")
    parser.add_argument("--fix", metavar="FILE", type=Path, help="write a cleaned copy here")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode images")
    found = parser.parse_args(arguments)
    if (found.annotations is None) == (found.dataset is None):
        parser.error("give either JSON or --dataset NAME")
    if found.annotations and not (found.images or found.no_images):
        parser.error("give the folder of the images after JSON, or --no-images")
    if found.workers is not None and found.workers < 1:
        parser.error(f"--workers must be at least 1: {found.workers}")
    return found


def check(arguments: argparse.Namespace) -> CheckedDataset:
    """Read and check what the command line names."""
    source, image_root = arguments.annotations, arguments.images
    if arguments.dataset:
        source, image_root = from_registered(arguments.dataset)
    space = None
    if arguments.same_categories_as:
        space = CategorySpace.from_coco(arguments.same_categories_as)
    checked = check_dataset(
        source,
        None if arguments.no_images else image_root,
        category_space=space,
        tree=arguments.tree,
        box_format=arguments.box_format,
        workers=arguments.workers,
        progress=sys.stderr.isatty(),
    )
    checked.report.source = arguments.annotations or arguments.dataset
    return checked


def run(arguments: argparse.Namespace) -> int:
    """Check, report, mend; return 1 when there are problems."""
    checked = check(arguments)
    checked.report.print(Console())
    if arguments.json:
        checked.report.save(arguments.json)
    if arguments.fix:
        done = checked.write_fixed(arguments.fix, source=arguments.annotations)
        for line in done or ["nothing to mend"]:
            print(f"  {line}")
        print(f"cleaned copy: {arguments.fix}")
    return 0 if checked.report.is_clean else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
