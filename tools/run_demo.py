#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a small detector on generated scenes, score it, and write a page to look at.

Running it again goes on where it stopped; when training is over, only the scores and the page are
made anew.
"""

import argparse
import sys
from pathlib import Path

from vastdet.engine import command_line
from vastdet.engine.tools import exit_status
from vastdet.model_zoo import get_config_file
from vastdet.report import write_report

CONFIG = "quick/demo.yaml"


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate and report; 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", metavar="DIR", help="folder of the run")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config"
    )
    found = parser.parse_args(arguments)
    train = ["--config-file", get_config_file(CONFIG), "--resume"]
    status = command_line.main([*train, "OUTPUT_DIR", found.output, *found.opts])
    if status:
        return status
    return exit_status(lambda: report(Path(found.output)))


def report(output: Path) -> None:
    """Write the page and say how to go on."""
    page = write_report(output, title="A detector trained on this machine")
    weights = output / "model_final.pth"
    print(
        f"\nOpen {page} in a browser.\n\nGo on from here:\n"
        f"  tools/demo.py --config-file configs/{CONFIG} --input PICTURE_OR_FOLDER "
        f"--output output/pictures MODEL.WEIGHTS {weights}\n"
        f"  tools/train_net.py --config-file configs/{CONFIG} --eval-only MODEL.WEIGHTS {weights}\n"
        f"  tools/train_net.py --config-file configs/{CONFIG} "
        "--register my_train train.json images/ DATASETS.TRAIN \"('my_train',)\" "
        'DATASETS.TEST "()" OUTPUT_DIR output/mine'
    )


if __name__ == "__main__":
    sys.exit(main())
