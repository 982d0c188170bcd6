#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compute the proposals that Fast R-CNN reads, for any registered dataset."""

import argparse
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog

import vastdet  # noqa: F401  (registers the datasets)
from vastdet.data.compute_proposals import ProposalSettings, compute_proposals
from vastdet.data.proposal_methods import MAX_PROPOSALS, METHODS
from vastdet.data.proposals import export_detectron2, proposal_recall
from vastdet.data.register import require_registered
from vastdet.engine.tools import add_register_argument, exit_status, register_datasets


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Propose boxes for every image of a dataset and store them for Fast R-CNN "
        "(MODEL.LOAD_PROPOSALS, DATASETS.PROPOSAL_FILES_TRAIN and _TEST). A run that was stopped "
        "goes on where it was. Ends with the share of ground-truth boxes that are covered.",
        epilog="example: tools/compute_proposals.py --dataset generated_24_train "
        "--output output/proposals/generated_24_train.npz",
    )
    parser.add_argument("--dataset", metavar="NAME", required=True, help="a registered dataset")
    add_register_argument(parser)
    parser.add_argument(
        "--output", metavar="FILE.npz", required=True, type=Path, help="where to store them"
    )
    parser.add_argument(
        "--method",
        choices=list(METHODS),
        default="selective-search-fast",
        help="selective search in its fast or its quality mode (OpenCV contrib), or windows on a "
        "grid, which take no time (default: selective-search-fast)",
    )
    parser.add_argument(
        "--max-proposals",
        metavar="N",
        type=int,
        default=MAX_PROPOSALS,
        help=f"at most this many an image (default: {MAX_PROPOSALS})",
    )
    parser.add_argument(
        "--processes", metavar="N", type=int, help="worker processes (default: one a processor)"
    )
    parser.add_argument(
        "--export-detectron2",
        metavar="FILE.pkl",
        type=Path,
        help="also write the pickle that a plain Detectron2 loads",
    )
    options = parser.parse_args(arguments)
    if options.max_proposals < 1:
        parser.error(f"--max-proposals must be at least 1, got {options.max_proposals}")
    return options


def run(options: argparse.Namespace) -> None:
    """Compute, store and judge the proposals."""
    register_datasets(options)
    require_registered(options.dataset)
    records = DatasetCatalog.get(options.dataset)
    settings = ProposalSettings(options.method, options.max_proposals)
    proposals = compute_proposals(records, options.output, settings, options.processes)
    mean = sum(len(p.boxes) for p in proposals) / max(1, len(proposals))
    print(f"{options.output}: {len(proposals)} images, {mean:.0f} proposals an image on average")
    if options.export_detectron2:
        export_detectron2(options.export_detectron2, proposals)
        print(f"{options.export_detectron2}: the same for a plain Detectron2")
    for threshold in (0.5, 0.7):
        recall, num_boxes = proposal_recall(records, proposals, threshold)
        print(f"recall at IoU {threshold}: {100 * recall:.1f} % of {num_boxes} boxes")


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    options = parse_arguments(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
