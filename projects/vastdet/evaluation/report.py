# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves behind: log lines, metrics.json, per_category.csv, pictures."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.logger import create_small_table

from vastdet.evaluation import plots
from vastdet.evaluation.confusion import confusion_matrix
from vastdet.evaluation.detections import Detections
from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.metrics import CategoryScores, Scores
from vastdet.evaluation.protocols import Protocol
from vastdet.files import write_csv, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportOptions:
    """What a report holds beyond the numbers.

    Attributes:
        plots: draw the pictures.
        confusion_score: lowest score of a detection in the confusion matrix.
    """

    plots: bool = False
    confusion_score: float = 0.3


def log_scores(scores: Scores, protocol: Protocol) -> None:
    """Log the summary with what it counts, and the means of the groups of categories."""
    logger.info(
        "%s (%s): %s\n%s",
        protocol.title,
        protocol.key,
        protocol.description,
        create_small_table(scores.summary),
    )
    for group, row in scores.groups.items():
        logger.info("%s categories:\n%s", group, create_small_table(row))


def write_report(
    folder: Path,
    protocols: Sequence[Protocol],
    scores: Mapping[str, Scores],
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    dataset: str,
    engine: str,
    options: ReportOptions,
    selection: Mapping[str, float] | None = None,
) -> None:
    """Write every file of an evaluation but what the model gave, detections and selection.

    `scores` is keyed by protocol; the files of another protocol than bbox carry its key.
    `selection` has the scores of the model's selection of categories, where it has one.
    """
    content: dict[str, Any] = {
        "dataset": dataset,
        "engine": engine,
        "note": " ".join(f"{p.title} ({p.key}): {p.description}" for p in protocols),
        "num_images": len(ground_truth.image_ids),
        "num_categories": ground_truth.num_categories,
        "num_boxes": int((~ground_truth.is_crowd).sum()),
        "num_detections": len(detections),
    }
    for protocol in protocols:
        result = scores[protocol.key]
        suffix = file_suffix(protocol)
        header, rows = category_table(result.categories, ground_truth)
        write_csv(folder / f"per_category{suffix}.csv", header, rows)
        content[protocol.key] = {
            "title": protocol.title,
            "description": protocol.description,
            **result.summary,
            "groups": result.groups,
            "per_category": [dict(zip(header, row, strict=True)) for row in rows],
        }
        if options.plots:
            write_score_plots(folder, suffix, result, ground_truth)
    if selection is not None:
        content["selection"] = dict(selection)
    if options.plots:
        write_confusion(folder, ground_truth, detections, options.confusion_score)
    write_json(folder / "metrics.json", content, indent=1)


def file_suffix(protocol: Protocol) -> str:
    """What the names of a protocol's files end on: nothing for boxes by a dataset's main rule."""
    return "" if protocol.key == "bbox" else f"_{protocol.key}"


def write_score_plots(folder: Path, suffix: str, scores: Scores, ground_truth: GroundTruth) -> None:
    """Precision-recall curves, AP by size and AP by frequency."""
    plots.save(
        plots.plot_precision_recall(scores, ground_truth), folder / f"precision_recall{suffix}.png"
    )
    plots.save(plots.plot_sizes(scores), folder / f"ap_by_size{suffix}.png")
    plots.save(plots.plot_frequency(scores, ground_truth), folder / f"ap_by_frequency{suffix}.png")


def write_confusion(
    folder: Path, ground_truth: GroundTruth, detections: Detections, score_threshold: float
) -> None:
    """The confusion matrix of boxes as a picture, and all its pairs as a table."""
    matrix = confusion_matrix(ground_truth, detections, score_threshold=score_threshold)
    labels = [*ground_truth.labels, "(background)"]
    totals = np.bincount(matrix.labelled, weights=matrix.count, minlength=matrix.num_categories + 1)
    order = np.argsort(-matrix.count, kind="stable")
    write_csv(
        folder / "confusion_pairs.csv",
        ("labelled", "predicted", "count", "share_of_labelled"),
        (
            (labels[a], labels[b], count, round(count / totals[a], 6))
            for a, b, count in zip(
                matrix.labelled[order].tolist(),
                matrix.predicted[order].tolist(),
                matrix.count[order].tolist(),
                strict=True,
            )
        ),
    )
    plots.save(plots.plot_confusion(matrix, ground_truth), folder / "confusion_matrix.png")


def category_table(
    categories: CategoryScores, ground_truth: GroundTruth
) -> tuple[list[str], list[list[Any]]]:
    """Header and one row a category; None where a number is undefined.

    Whether it is novel, and how much of it there is in training, are columns where they are known.
    """
    space = ground_truth.space
    columns: dict[str, Sequence[Any]] = {
        "category_id": space.dataset_ids,
        "name": ground_truth.labels,
        "frequency": space.frequency,
    }
    for name, known in (
        ("novel", space.novel),
        ("training_images", space.image_counts),
        ("training_boxes", space.instance_counts),
    ):
        if known is not None:
            columns[name] = known
    for field in fields(categories):
        columns[field.name] = getattr(categories, field.name).tolist()
    rows = [
        [None if value != value else value for value in row]
        for row in zip(*columns.values(), strict=True)
    ]
    return list(columns), rows
