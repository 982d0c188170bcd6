# SPDX-License-Identifier: Apache-2.0
"""From results files to a full report."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.metrics import Scores
from vastdet.evaluation.protocols import Protocol, ProtocolBuilder, score_protocols
from vastdet.evaluation.report import ReportOptions, write_report
from vastdet.evaluation.results_file import read_results


def score_files(
    results: Sequence[Path],
    ground_truth: GroundTruth,
    folder: Path,
    *,
    dataset: str,
    build_protocols: ProtocolBuilder,
    iou_type: str = "bbox",
    engine: str = "hotcoco",
    options: ReportOptions,
    step: Callable[[str], object],
) -> tuple[list[Protocol], dict[str, Scores]]:
    """Score results files and write the report into `folder`; `step` is told each stage.

    Several files hold parts of one dataset's results, as `read_results` says.

    Returns the protocols and their scores by key. Raises ValueError without annotations to score
    against, and as `read_results` and `build_protocols` do.
    """
    if not ground_truth.annotated:
        raise ValueError(
            f"{ground_truth.source} lists no annotations (is it a test set?), so nothing can be "
            "scored; its results go to the set's evaluation server"
        )
    protocols = build_protocols(ground_truth, iou_type=iou_type, engine=engine)
    detections = read_results(
        results,
        ground_truth,
        iou_type=iou_type,
        progress=lambda share: step(f"reading detections: {share:.0%}"),
    )
    scores = score_protocols(protocols, ground_truth, detections, step=step)
    step("writing the report")
    write_report(
        folder,
        protocols,
        scores,
        ground_truth,
        detections,
        dataset=dataset,
        engine=engine,
        options=options,
    )
    return protocols, scores
