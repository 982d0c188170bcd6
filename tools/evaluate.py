#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Score results files without running a model."""

import argparse
import sys
from functools import partial
from pathlib import Path

from detectron2.data import MetadataCatalog
from rich.console import Console

import vastdet  # noqa: F401  (registers the datasets)
from vastdet.engine.tools import add_results_arguments, exit_status, load_ground_truth
from vastdet.evaluation.engines import ENGINES
from vastdet.evaluation.ground_truth import with_training_counts
from vastdet.evaluation.protocols import PROTOCOLS, ProtocolBuilder, coco_protocols
from vastdet.evaluation.report import ReportOptions
from vastdet.evaluation.scoring import score_files
from vastdet.evaluation.tables import (
    category_table,
    group_table,
    size_table,
    summary_table,
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Score results, by every metric of the dataset: tables on the screen; "
        "metrics.json, per_category.csv and pictures in the output folder.",
        epilog="example: tools/evaluate.py --annotations instances_val2017.json "
        "--results coco_instances_results.json --output output/scores",
    )
    add_results_arguments(parser)
    parser.add_argument(
        "--output", metavar="DIR", required=True, type=Path, help="folder for the report"
    )
    parser.add_argument(
        "--training",
        metavar="JSON",
        help="the annotations that the model was trained on: AP is set against how much of a "
        "category they have, and categories without frequency groups get LVIS's",
    )
    parser.add_argument(
        "--protocol",
        choices=sorted(PROTOCOLS),
        help="whose rules (default: the dataset's own; COCO's for an annotation file)",
    )
    parser.add_argument(
        "--max-dets",
        metavar="N",
        type=int,
        nargs="+",
        default=[1, 10, 100],
        help="COCO's rules: detections an image and category that count, AR at each, AP at the "
        "last (default: 1 10 100)",
    )
    parser.add_argument(
        "--engine",
        choices=sorted(ENGINES),
        default="hotcoco",
        help="hotcoco is fast, pycocotools the reference (default: hotcoco)",
    )
    parser.add_argument(
        "--confusion-score",
        metavar="S",
        type=float,
        default=0.3,
        help="lowest score in the confusion matrix (default: 0.3)",
    )
    parser.add_argument("--no-plots", action="store_true", help="write no pictures")
    return parser.parse_args(arguments)


def protocol_builder(arguments: argparse.Namespace) -> ProtocolBuilder:
    """What builds the protocols to score by: those asked for, or the dataset's own."""
    rules = arguments.protocol
    if rules is None and arguments.dataset:
        rules = MetadataCatalog.get(arguments.dataset).get("evaluator_type")
    build = PROTOCOLS.get(rules, coco_protocols)
    if build is coco_protocols:
        return partial(coco_protocols, max_dets=tuple(arguments.max_dets))
    return build


def run(arguments: argparse.Namespace) -> None:
    """Score, write, print."""
    console = Console()
    with console.status("reading ground truth") as status:
        ground_truth, dataset = load_ground_truth(arguments)
        if arguments.training:
            status.update("counting the training set")
            ground_truth = with_training_counts(ground_truth, arguments.training)
        protocols, scores = score_files(
            arguments.results,
            ground_truth,
            arguments.output,
            dataset=dataset,
            build_protocols=protocol_builder(arguments),
            iou_type=arguments.iou_type,
            engine=arguments.engine,
            options=ReportOptions(
                plots=not arguments.no_plots, confusion_score=arguments.confusion_score
            ),
            step=status.update,
        )
    console.print(category_table(scores[protocols[0].key], ground_truth))
    console.print(size_table(protocols, scores, title="by size of the object, %"))
    for protocol in protocols:
        groups = group_table(scores[protocol.key], title=f"groups of categories: {protocol.title}")
        if groups is not None:
            console.print(groups)
    title = f"{dataset}: {len(ground_truth.image_ids):,} images"
    console.print(summary_table(protocols, scores, title=title))
    for protocol in protocols:
        console.print(f"{protocol.title} ({protocol.key}): {protocol.description}")
    console.print(f"report in {arguments.output}", highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    found = parse_arguments(arguments)
    return exit_status(lambda: run(found))


if __name__ == "__main__":
    sys.exit(main())
