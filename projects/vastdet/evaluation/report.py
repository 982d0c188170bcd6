# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves behind: log lines, metrics.json, per_category.csv, pictures."""

import logging
from collections.abc import Mapping
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
from vastdet.files import write_csv, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportOptions:
    """What a report holds beyond the numbers.

    Attributes:
        plots: draw the pictures.
        confusion_score: lowest score of a detection in the confusion matrix.
        note: a sentence on how the numbers must be read, kept beside them.
    """

    plots: bool = False
    confusion_score: float = 0.3
    note: str = ""


def log_scores(scores: Scores, ground_truth: GroundTruth, *, iou_type: str, note: str = "") -> None:
    """Log the summary and, where categories have frequency groups, their means."""
    logger.info("Evaluation results for %s:\n%s", iou_type, create_small_table(scores.summary))
    for group, row in scores.frequency.items():
        logger.info("%s categories:\n%s", group, create_small_table(row))
    if note:
        logger.warning(note)


def write_report(
    folder: Path,
    scores: Mapping[str, Scores],
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    dataset: str,
    engine: str,
    options: ReportOptions,
) -> None:
    """Write every file of an evaluation but the detections themselves.

    `scores` is keyed by IoU type; files of another type than bbox carry its name.
    """
    content: dict[str, Any] = {
        "dataset": dataset,
        "engine": engine,
        "note": options.note,
        "num_images": len(ground_truth.image_ids),
        "num_categories": ground_truth.num_categories,
        "num_boxes": int((~ground_truth.is_crowd).sum()),
        "num_detections": len(detections),
    }
    for iou_type, result in scores.items():
        suffix = "" if iou_type == "bbox" else f"_{iou_type}"
        header, rows = category_table(result.categories, ground_truth)
        write_csv(folder / f"per_category{suffix}.csv", header, rows)
        content[iou_type] = {
            **result.summary,
            "frequency": result.frequency,
            "per_category": [dict(zip(header, row, strict=True)) for row in rows],
        }
        if options.plots:
            write_score_plots(folder, suffix, result, ground_truth)
    if options.plots:
        write_confusion(folder, ground_truth, detections, options.confusion_score)
    write_json(folder / "metrics.json", content, indent=1)


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
    """Header and one row a category; None where a number is undefined."""
    columns = [getattr(categories, column.name).tolist() for column in fields(categories)]
    header = ["category_id", "name", "frequency", *(c.name for c in fields(categories))]
    names = (ground_truth.space.dataset_ids, ground_truth.labels, ground_truth.space.frequency)
    rows = [
        [None if value != value else value for value in row]
        for row in zip(*names, *columns, strict=True)
    ]
    return header, rows
