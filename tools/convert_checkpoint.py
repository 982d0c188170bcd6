#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Convert the weights of another code base into ours, or ours into its."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vastdet.engine.tools import exit_status
from vastdet.model_zoo.convert_file import (
    DETECTRON2_EPS,
    coco_category_ids,
    convert_from_torchvision,
    convert_to_torchvision,
    find_converter,
    summarise,
)
from vastdet.model_zoo.torchvision_models import torchvision_converters


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Convert weights between torchvision and Detectron2 names and layouts. The "
        "configs in configs/torchvision/ behave as torchvision's models do.",
        epilog="example: tools/convert_checkpoint.py --from torchvision "
        "--architecture retinanet_resnet50_fpn --batch-norm-eps 0 --coco-categories "
        "--input retinanet_resnet50_fpn_coco-eeacb38b.pth --output output/retinanet.safetensors",
    )
    parser.add_argument(
        "--from",
        dest="source",
        choices=("torchvision", "detectron2"),
        required=True,
        help="who made the input; the output is for the other one",
    )
    parser.add_argument(
        "--architecture",
        metavar="NAME",
        required=True,
        help=f"torchvision's name of the model: {', '.join(torchvision_converters())}",
    )
    parser.add_argument("--input", metavar="FILE", type=Path, required=True, help="weights to read")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        required=True,
        help="weights to write: .safetensors or .pth (.pth for a backbone alone)",
    )
    parser.add_argument(
        "--batch-norm-eps",
        metavar="EPS",
        type=float,
        default=DETECTRON2_EPS,
        help="epsilon of torchvision's frozen batch norms: 0 for its published COCO_V1 weights of "
        f"Faster R-CNN and RetinaNet (default: {DETECTRON2_EPS:g})",
    )
    parser.add_argument(
        "--coco-categories",
        action="store_true",
        help="keep, of 91 class rows numbered by COCO id, the 80 that COCO uses",
    )
    options = parser.parse_args(arguments)
    if options.coco_categories and options.source != "torchvision":
        parser.error("--coco-categories works on torchvision's weights only")
    if options.batch_norm_eps < 0:
        parser.error(f"--batch-norm-eps must not be negative, got {options.batch_norm_eps}")
    return options


def run(options: argparse.Namespace) -> None:
    """Convert, and show what went where."""
    converter = find_converter(options.architecture)
    if options.source == "torchvision":
        converted = convert_from_torchvision(
            options.input,
            options.output,
            converter,
            batch_norm_eps=options.batch_norm_eps,
            category_ids=coco_category_ids() if options.coco_categories else None,
        )
    else:
        converted = convert_to_torchvision(
            options.input, options.output, converter, batch_norm_eps=options.batch_norm_eps
        )
    table = Table(title=f"{converter.name}: {len(converted)} tensors written to {options.output}")
    for column in ("torchvision", "Detectron2"):
        table.add_column(column, overflow="fold")
    for column in ("tensors", "values"):
        table.add_column(column, justify="right")
    for group in summarise(converter, converted):
        table.add_row(group.source, group.target, str(group.num_tensors), f"{group.num_values:,}")
    console = Console()
    console.print(table)
    if options.source == "torchvision" and converter.config:
        console.print(f"Use it with configs/{converter.config}.yaml MODEL.WEIGHTS {options.output}")


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    options = parse_arguments(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
