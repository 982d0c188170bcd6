#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Export the weights of a training checkpoint, without optimiser and scheduler, to safetensors."""

import argparse
import sys
from pathlib import Path

from vastdet.engine.export_weights import export_weights
from vastdet.engine.tools import exit_status

EPILOG = """
Where SOLVER.EMA was on, the moving average is exported, which is what evaluation uses. The file is
for MODEL.WEIGHTS or --weights of any tool; in half precision too it loads into float32 models.

Example:
    $ export_weights.py output/model_final.pth --out detector.safetensors --half
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SRC", help="a checkpoint, such as model_final.pth")
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", type=Path)
    parser.add_argument("--half", action="store_true", help="float16: half the size")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Export, and say what was written."""
    exported = export_weights(options.source, options.out, half=options.half)
    values = sum(x.numel() for x in exported.weights.values())
    size = options.out.stat().st_size / 1e6
    kind = "averaged weights" if exported.averaged else "weights"
    when = "" if exported.iteration is None else f" of iteration {exported.iteration}"
    print(
        f"{options.out}: {len(exported.weights)} tensors, {values:,} values, {size:.1f} MB: "
        f"{kind}{when}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    options = parse_arguments(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
