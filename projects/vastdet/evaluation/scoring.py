# SPDX-License-Identifier: Apache-2.0
"""From detections to scores, and from a results file to a full report."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vastdet.evaluation.detections import Detections
from vastdet.evaluation.engines import accumulate
from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.metrics import Scores, score
from vastdet.evaluation.report import ReportOptions, write_report
from vastdet.evaluation.results_file import read_results


def score_detections(
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    iou_types: Sequence[str] = ("bbox",),
    engine: str = "hotcoco",
    max_dets: Sequence[int] = (1, 10, 100),
) -> dict[str, Scores]:
    """COCO scores by IoU type ("bbox", "segm"); `engines.accumulate` says what is checked."""
    results = {}
    for iou_type in iou_types:
        curves = accumulate(
            ground_truth, detections, engine=engine, iou_type=iou_type, max_dets=max_dets
        )
        results[iou_type] = score(curves, ground_truth, detections)
    return results


def score_file(
    results: Path,
    ground_truth: GroundTruth,
    folder: Path,
    *,
    dataset: str,
    iou_type: str = "bbox",
    engine: str = "hotcoco",
    max_dets: Sequence[int] = (1, 10, 100),
    options: ReportOptions,
    step: Callable[[str], None],
) -> Scores:
    """Score a COCO results file and write the report into `folder`; `step` is told each stage.

    Raises ValueError without annotations to score against, and as `read_results` does.
    """
    if not ground_truth.annotated:
        raise ValueError(
            f"{ground_truth.source} lists no annotations (is it a test set?), so nothing can be "
            "scored; its results go to the set's evaluation server"
        )
    step("reading detections")
    detections = read_results(results, ground_truth, iou_type=iou_type)
    step("matching")
    scores = score_detections(
        ground_truth, detections, iou_types=[iou_type], engine=engine, max_dets=max_dets
    )
    step("writing the report")
    write_report(
        folder, scores, ground_truth, detections, dataset=dataset, engine=engine, options=options
    )
    return scores[iou_type]
