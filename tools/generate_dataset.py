#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write a generated dataset to disk: images, COCO, LVIS or V3Det annotations, captions."""

import argparse
import dataclasses
import sys
from pathlib import Path

from vastdet.data.generated import GeneratedSplit, SceneConfig
from vastdet.data.generated.splits import SPLITS, with_settings
from vastdet.data.generated.writer import FORMATS, IMAGE_TYPES, write_dataset
from vastdet.engine.tools import exit_status


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    fields = ", ".join(field.name for field in dataclasses.fields(SceneConfig))
    parser = argparse.ArgumentParser(
        description="Write a generated dataset to disk: scenes of textured, coloured, overlapping "
        "shapes with 10 to 20,000 categories. Equal arguments give equal files.",
        epilog="Example: tools/generate_dataset.py --categories 1000 --images 500 --format all "
        f"--output output/shapes. Scene fields for --set: {fields}.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to fill")
    parser.add_argument("--categories", type=int, default=24, metavar="K", help="10 to 20,000 [24]")
    parser.add_argument(
        "--images", type=int, metavar="N", help="how many [as in the registered set]"
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="train",
        help="which scenes; no scene is in two splits, and open_train leaves out the held-out "
        "compositions that open_val has [train]",
    )
    parser.add_argument(
        "--format", choices=(*FORMATS, "all"), default="coco", help="annotation format [coco]"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes [0]")
    parser.add_argument("--image-type", choices=IMAGE_TYPES, default="png", help="[png]")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="change scenes, for example: --set width=320 height=240 noise=0",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write into a folder that is not empty, replacing files of the same names",
    )
    return parser.parse_args(argv)


def build_split(arguments: argparse.Namespace) -> GeneratedSplit:
    """The dataset that the command line asks for."""
    split = GeneratedSplit.default(arguments.categories, arguments.split)
    settings = [f"seed={arguments.seed}", *arguments.set]
    if arguments.images is not None:
        settings.append(f"num_images={arguments.images}")
    return with_settings(split, ",".join(settings), "--set")


def run(arguments: argparse.Namespace) -> None:
    """Write the dataset and list its files."""
    written = write_dataset(
        build_split(arguments),
        arguments.output,
        formats=FORMATS if arguments.format == "all" else (arguments.format,),
        image_type=arguments.image_type,
        overwrite=arguments.overwrite,
    )
    print("\n".join(str(path) for path in written))


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    arguments = parse_arguments(argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
