#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Show CQ-DINO: score trained weights among 1,000 categories, train a small one, write a page.

The weights come with vastdet; the second detector is trained here, from random weights, among 24
categories. Running it again goes on where it stopped: what is scored is not scored again, and when
training is over, only its scores and the page are made anew. Another --output starts afresh.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

from vastdet.engine import command_line
from vastdet.engine.tools import close_logs, exit_status
from vastdet.files import local_path, read_json, write_json
from vastdet.model_zoo import get_config, get_config_file
from vastdet.report import Part, write_joint_report
from vastdet.report.page import format_duration
from vastdet.report.run_folder import read_evaluations, read_run
from vastdet.report.sections import training_seconds

TRAINED, SMALL = "quick/cq_dino_kinds", "quick/demo"
# Folders of the two runs below the output folder, and what says that the first one is complete.
SCORED_FOLDER, TRAINING_FOLDER, SCORED_FILE = "trained_weights", "from_scratch", "scored.json"
SCORED_SECTIONS = ("detections", "selection", "scores", "categories", "plots")
TRAINING_SECTIONS = (
    "curves", "gradients", "detections", "selection", "scores", "categories", "plots", "machine",
    "config",
)  # fmt: skip
NUM_PICTURES = 8  # of each
LEAD = (
    "CQ-DINO detects among vast numbers of categories: each one is a learned query, a selection "
    "finds the few that a picture is likely to show, and only those are looked for. First, weights "
    "that come with vastdet, scored on this machine; then a small detector that this machine "
    "trained from random weights."
)
# Not the config of the demo: that selects more categories than small data has.
OWN_DATA = (
    "tools/train_net.py --config-file configs/quick/fcos_bccd.yaml "
    "--register my_train train.json images/ --register my_val val.json images/ "
    "DATASETS.TRAIN \"('my_train',)\" DATASETS.TEST \"('my_val',)\" OUTPUT_DIR output/mine"
)


def main(arguments: list[str] | None = None) -> int:
    """Score, train and report; 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", metavar="DIR", help="folder of the runs")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="changes to the config of the training",
    )
    found = parser.parse_args(arguments)
    output = Path(found.output)
    steps = (
        lambda: score(output),
        lambda: train(output, found.opts),
        lambda: report(output),
    )
    for step in steps:
        status = exit_status(step)
        if status:
            return status
    return 0


def score(output: Path) -> int:
    """Score the trained weights, unless these weights are scored already with this config.

    Raises:
        ValueError, FileNotFoundError: the model zoo has no weights; it says how to get them.
    """
    cfg = get_config(TRAINED, trained=True)
    weights = str(cfg.MODEL.WEIGHTS)
    content = local_path(weights).read_bytes() + cfg.dump().encode()
    digest = hashlib.sha256(content).hexdigest()
    folder = output / SCORED_FOLDER
    if is_scored(folder, digest):
        print(f"The trained weights are scored already: {folder}")
        return 0
    print("1 of 2: scoring trained weights of CQ-DINO among 1,000 categories", flush=True)
    started = time.perf_counter()
    config = ["--config-file", get_config_file(TRAINED), "--eval-only"]
    opts = ["OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", weights]
    status = command_line.main([*config, *opts])
    if not status:
        seconds = time.perf_counter() - started
        write_json(folder / SCORED_FILE, {"sha256": digest, "seconds": seconds})
    return status


def is_scored(folder: Path, digest: str) -> bool:
    """Whether the scores in a folder are there and of weights and config with this digest."""
    done = folder / SCORED_FILE
    found = read_json(done, advice="delete it") if done.is_file() else {}
    return (
        isinstance(found, dict)
        and found.get("sha256") == digest
        and isinstance(found.get("seconds"), float)
        and bool(read_evaluations(folder / "inference"))
    )


def train(output: Path, opts: list[str]) -> int:
    """Train the small detector, or go on with it."""
    close_logs()
    print("2 of 2: training a small CQ-DINO from random weights", flush=True)
    config = ["--config-file", get_config_file(SMALL), "--resume"]
    return command_line.main([*config, "OUTPUT_DIR", str(output / TRAINING_FOLDER), *opts])


def report(output: Path) -> None:
    """Write the page and say how to go on."""
    page = write_joint_report(
        [scored_part(output / SCORED_FOLDER), training_part(output / TRAINING_FOLDER)],
        output / "index.html",
        title="CQ-DINO, from weights and from scratch",
        lead=LEAD,
        num_pictures=NUM_PICTURES,
    )
    run = output / TRAINING_FOLDER
    config, weights = run / "config.yaml", run / "model_final.pth"
    print(
        f"\nOpen {page} in a browser.\n\nGo on from here:\n"
        f"  tools/demo.py --config-file {config} --input PICTURE_OR_FOLDER "
        f"--output output/pictures MODEL.WEIGHTS {weights}\n"
        f"  tools/train_net.py --config-file {config} --eval-only MODEL.WEIGHTS {weights}\n"
        f"  {OWN_DATA}"
    )


def scored_part(folder: Path) -> Part:
    """The part of the page about the trained weights."""
    seconds = read_json(folder / SCORED_FILE, advice="delete it")["seconds"]
    images = int(read_run(folder).evaluations[0].metrics["num_images"] or 0)
    text = (
        f"Weights that come with vastdet (configs/{TRAINED}.yaml), scored here in "
        f"{format_duration(seconds)} on {images} generated scenes that they have not seen in "
        "training. 980 of the categories are a shape with a colour and a pattern, 20 are shapes "
        "above those, for objects whose fill has no category."
    )
    return Part(folder, "trained", "1,000 categories", text, SCORED_SECTIONS)


def training_part(folder: Path) -> Part:
    """The part of the page about the training."""
    run = read_run(folder)
    iterations = run.series("total_loss")[0]
    text = (
        f"A small CQ-DINO of configs/{SMALL}.yaml, trained on this machine for "
        f"{int(iterations[-1]) + 1 if iterations else 0} iterations, "
        f"{format_duration(training_seconds(run))}, from random weights: no part of it was trained "
        "before. It has 24 categories, each a leaf of the tree, and selects 12 of them."
    )
    return Part(folder, "scratch", "Trained from scratch here", text, TRAINING_SECTIONS)


if __name__ == "__main__":
    sys.exit(main())
