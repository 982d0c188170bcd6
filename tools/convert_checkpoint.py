#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Convert weights that others published into ours, or ours into theirs."""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vastdet.engine.config_files import class_count_key, value_of
from vastdet.engine.tools import exit_status
from vastdet.model_zoo.config_files import get_config_file
from vastdet.model_zoo.convert_file import (
    DETECTRON2_EPS,
    Conversion,
    coco_category_ids,
    convert_to_ours,
    convert_to_theirs,
    differences,
    summarise,
)
from vastdet.model_zoo.registry import find_converter, known_names

NUM_COCO_IDS = 91
EPILOG = """
Every tensor is held against the model of our config: one that is missing, left over or of another
shape is an error, and nothing is written. Where the other code base is installed, both networks
see one random image and the largest difference is printed.

KEY VALUE overrides of the config come last, for a network of another size.

Exit code: 0 done, 2 wrong input.

Example:
    $ convert_checkpoint.py checkpoint0011_4scale.pth --model dino_R_50_4scale \\
        --coco-categories --out output/dino.safetensors
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SRC", type=Path, nargs="?", help="weights to read")
    parser.add_argument("--model", metavar="NAME", help="whose weights they are; see --list")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="weights to write: .safetensors or .pth (.pth for a backbone alone)",
    )
    parser.add_argument("--list", action="store_true", help="print the names that --model knows")
    parser.add_argument(
        "--print-config", action="store_true", help="print the config to use with --model"
    )
    parser.add_argument(
        "--coco-categories",
        action="store_true",
        help="keep, of 91 class rows numbered by COCO id, the 80 that COCO uses",
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="take the moving average of the weights, or not, where a file has both",
    )
    parser.add_argument(
        "--batch-norm-eps",
        metavar="EPS",
        type=float,
        default=DETECTRON2_EPS,
        help="epsilon of their frozen batch norms: 0 for torchvision's published COCO_V1 weights "
        f"of Faster R-CNN and RetinaNet (default: {DETECTRON2_EPS:g})",
    )
    parser.add_argument(
        "--reverse", action="store_true", help="SRC is ours: write it under their names"
    )
    parser.add_argument("opts", nargs="*", help="config overrides as KEY VALUE ...")
    found = parser.parse_intermixed_args(arguments)
    if not found.list and not found.model:
        parser.error("--model says whose weights they are; --list prints the names")
    if not found.list and not found.print_config and not (found.source and found.out):
        parser.error("weights to read (SRC) and to write (--out FILE) are needed")
    if found.reverse and (found.coco_categories or found.ema is not None or found.opts):
        parser.error("--coco-categories, --ema and KEY VALUE work on their weights, not on ours")
    if found.batch_norm_eps < 0:
        parser.error(f"--batch-norm-eps must not be negative, got {found.batch_norm_eps}")
    return found


def run(options: argparse.Namespace) -> None:
    """Convert, and show what went where."""
    console = Console(soft_wrap=True)
    if options.list:
        for name in known_names():
            line = f"{name:44}{find_converter(name).name}"
            console.print(line, highlight=False, markup=False)
        return
    converter = find_converter(options.model)
    if options.print_config:
        console.print(config_path(converter.config) or "none: a backbone goes into any config")
        return
    eps = options.batch_norm_eps
    if options.reverse:
        converted = convert_to_theirs(options.source, options.out, converter, batch_norm_eps=eps)
        console.print(table_of_tensors(converted, options.out))
        return
    converted = convert_to_ours(
        options.source,
        options.out,
        converter,
        overrides=options.opts,
        batch_norm_eps=eps,
        category_ids=coco_category_ids() if options.coco_categories else None,
        averaged=options.ema,
    )
    console.print(table_of_tensors(converted, options.out))
    found, reason = differences(converted, batch_norm_eps=eps)
    text = ", ".join(f"{key} {value:.2g}" for key, value in found.items())
    console.print(f"Largest differences to {converter.name} on a random image: {text or reason}")
    if converted.cfg and value_of(converted.cfg, class_count_key(converted.cfg)) == NUM_COCO_IDS:
        console.print(
            f"{NUM_COCO_IDS} classes, which look like COCO ids: with --coco-categories the file "
            "gets the 80 of the dataset in the order of the configs."
        )
    for line in next_commands(converted, options.out):
        console.print(line, highlight=False, markup=False)


def next_commands(converted: Conversion, output: Path) -> list[str]:
    """What to do with the file: commands that a shell takes."""
    path = config_path(converted.converter.config)
    if not path:
        return [f"Use it in any config that has this backbone: MODEL.WEIGHTS {output}"]
    config, file, opts = (
        shlex.quote(path),
        shlex.quote(str(output)),
        shlex.join(converted.overrides),
    )
    return [
        "Detect, or score on the config's dataset, with:",
        f"tools/demo.py --config-file {config} --weights {file} --input IMAGES "
        f"--output output/detections {opts}".rstrip(),
        f"tools/train_net.py --eval-only --config-file {config} MODEL.WEIGHTS {file} "
        f"{opts}".rstrip(),
    ]


def config_path(name: str) -> str:
    """The file of a config, as it is called from a checkout's root; "" for no config."""
    if not name:
        return ""
    path = Path(get_config_file(name))
    short = Path("configs", f"{name.removesuffix('.yaml')}.yaml")
    return str(short if short.is_file() and short.samefile(path) else path)


def table_of_tensors(converted: Conversion, output: Path) -> Table:
    """How many tensors went where."""
    table = Table(title=f"{converted.converter.name}: {len(converted.ours)} tensors, to {output}")
    for column in ("theirs", "ours"):
        table.add_column(column, overflow="fold")
    for column in ("tensors", "values"):
        table.add_column(column, justify="right")
    for group in summarise(converted):
        table.add_row(group.source, group.target, str(group.num_tensors), f"{group.num_values:,}")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    options = parse_arguments(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
