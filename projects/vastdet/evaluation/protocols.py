# SPDX-License-Identifier: Apache-2.0
"""The scoring rules of COCO, V3Det and LVIS, each with its name and what it counts.

A dataset's protocols are scored one after the other on the same detections, and the first is the
dataset's headline number.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vastdet.evaluation.category_tree import tree_aware_curves
from vastdet.evaluation.detections import Detections
from vastdet.evaluation.engines import accumulate, accumulate_federated
from vastdet.evaluation.ground_truth import GroundTruth
from vastdet.evaluation.metrics import Scores, score
from vastdet.evaluation.selection import (
    best_of_each,
    category_recall,
    detected_categories,
    num_beyond,
)

COCO_MAX_DETS = (1, 10, 100)
VAST_MAX_DETS = 300  # V3Det: of an image and category; LVIS: of an image
FIXED_AP_DETECTIONS = 10_000  # of a category
SELECTED_CATEGORIES = 100  # of an image, in AR^C

logger = logging.getLogger(__name__)

Rule = Callable[[GroundTruth, Detections, Mapping[str, Scores]], Scores]


@dataclass(frozen=True)
class Protocol:
    """One way to score detections.

    Attributes:
        key: its name among the results and, when it is not "bbox", in the names of its files.
        title: its name for people.
        description: how many detections count, what is ignored, and what the mean is over.
        rule: called with the ground truth, the detections and the scores, by key, of the protocols
            before it; returns the scores.
    """

    key: str
    title: str
    description: str
    rule: Rule


# Called as `build(ground_truth, iou_type=..., engine=...)`.
ProtocolBuilder = Callable[..., list[Protocol]]


def score_protocols(
    protocols: Sequence[Protocol],
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    step: Callable[[str], object] = lambda text: None,
) -> dict[str, Scores]:
    """The scores of each protocol by its key, in order; the rules say what they refuse.

    `step` is told the title of each protocol before it is computed.
    """
    results: dict[str, Scores] = {}
    for protocol in protocols:
        step(protocol.title)
        results[protocol.key] = protocol.rule(ground_truth, detections, results)
    return results


def coco_protocols(
    ground_truth: GroundTruth,
    *,
    iou_type: str = "bbox",
    engine: str = "hotcoco",
    max_dets: Sequence[int] = COCO_MAX_DETS,
) -> list[Protocol]:
    """COCO's AP, by `iou_type` "bbox" or "segm"; `engines.accumulate` says what is refused."""
    del ground_truth  # COCO's rules are the same for every dataset

    def rule(truth: GroundTruth, found: Detections, earlier: Mapping[str, Scores]) -> Scores:
        say_what_is_beyond(truth, found, max_dets[-1], by_category=True)
        curves = accumulate(truth, found, engine=engine, iou_type=iou_type, max_dets=max_dets)
        return score(curves, truth, found)

    return [
        Protocol(
            key=iou_type,
            title=f"COCO {shape_name(iou_type)} AP",
            description=(
                f"The {max_dets[-1]} best detections of each category and image count; crowd "
                "regions and what covers them are ignored. Mean over IoU 0.50 to 0.95 and over the "
                "categories with ground truth."
            ),
            rule=rule,
        )
    ]


def v3det_protocols(
    ground_truth: GroundTruth, *, iou_type: str = "bbox", engine: str = "hotcoco"
) -> list[Protocol]:
    """Plain and tree-aware AP of V3Det; plain alone, with a warning, without a category tree."""
    plain = Protocol(
        key=iou_type,
        title=f"V3Det plain {shape_name(iou_type)} AP",
        description=(
            f"COCO's AP with the {VAST_MAX_DETS} best detections of each category and image; a "
            "detection of a parent or child of the label is false. CQ-DINO, Prova and MMDetection "
            "report this one."
        ),
        rule=partial(plain_v3det, iou_type=iou_type, engine=engine),
    )
    hierarchy = ground_truth.space.hierarchy
    if hierarchy is None or not len(hierarchy.category_ancestor_pairs):
        logger.warning(
            "%s has no tree in which a category lies above another, so only the plain AP of V3Det "
            "can be computed; V3Det's own AP needs its category tree file (datasets/README.md)",
            ground_truth.source or "The dataset",
        )
        return [plain]
    aware = Protocol(
        key=f"{iou_type}_tree",
        title=f"V3Det tree-aware {shape_name(iou_type)} AP",
        description=(
            f"As the plain AP ({VAST_MAX_DETS} detections), but a detection of a descendant of the "
            "label is ignored; one of an ancestor stays false. V3Det's own evaluation reports this "
            "one, which is higher."
        ),
        rule=partial(tree_aware_v3det, plain=plain.key, iou_type=iou_type, engine=engine),
    )
    return [plain, aware]


def plain_v3det(
    ground_truth: GroundTruth,
    detections: Detections,
    earlier: Mapping[str, Scores],
    *,
    iou_type: str,
    engine: str,
) -> Scores:
    """COCO's AP at V3Det's limit, with the OVD AP and AR^C."""
    say_what_is_beyond(ground_truth, detections, VAST_MAX_DETS, by_category=True)
    curves = accumulate(
        ground_truth, detections, engine=engine, iou_type=iou_type, max_dets=(VAST_MAX_DETS,)
    )
    selected = detected_categories(
        detections, num_images=len(ground_truth.image_ids), limit=SELECTED_CATEGORIES
    )
    recall = category_recall(ground_truth, selected)
    return with_v3det_numbers(score(curves, ground_truth, detections), recall)


def tree_aware_v3det(
    ground_truth: GroundTruth,
    detections: Detections,
    earlier: Mapping[str, Scores],
    *,
    plain: str,
    iou_type: str,
    engine: str,
) -> Scores:
    """V3Det's own AP, from the scores under the key `plain`."""
    before = earlier[plain]
    curves = tree_aware_curves(
        before.curves, ground_truth, detections, engine=engine, iou_type=iou_type
    )
    return with_v3det_numbers(
        score(curves, ground_truth, detections), before.summary[f"ARC{SELECTED_CATEGORIES}"]
    )


def with_v3det_numbers(scores: Scores, recall_of_categories: float) -> Scores:
    """The scores with AR^C and, where there are novel categories, V3Det's AP of open vocabulary."""
    summary = scores.summary | {f"ARC{SELECTED_CATEGORIES}": recall_of_categories}
    if {"base", "novel"} <= scores.groups.keys():
        base, novel = scores.groups["base"]["AP"], scores.groups["novel"]["AP"]
        summary["APovd"] = (base + 3 * novel) / 4
    return replace(scores, summary=summary)


def lvis_protocols(
    ground_truth: GroundTruth, *, iou_type: str = "bbox", engine: str = "hotcoco"
) -> list[Protocol]:
    """LVIS's AP and Fixed-AP.

    Raises:
        ValueError: an engine that does not know LVIS's rules, or ground truth without LVIS's lists
            of negative categories.
    """
    if engine != "hotcoco":
        raise ValueError(
            f"the engine {engine!r} has COCO's rules only, LVIS's AP needs hotcoco "
            "(TEST.COCO_ENGINE, --engine)"
        )
    if ground_truth.absent is None:
        raise ValueError(
            f"{ground_truth.source or 'the ground truth'} has no neg_category_ids in its images, "
            "so it is no LVIS annotation file; COCO's AP is the one for files whose images are "
            "annotated completely"
        )
    federated = (
        "A category counts only in the images where it was looked for: labelled, or known to be "
        "absent; where its labels are incomplete, unmatched detections are ignored. Mean over IoU "
        "0.50 to 0.95 and over the categories with ground truth."
    )
    return [
        Protocol(
            key=iou_type,
            title=f"LVIS {shape_name(iou_type)} AP",
            description=f"The {VAST_MAX_DETS} best detections of each image count. {federated}",
            rule=partial(limited_by_image, iou_type=iou_type),
        ),
        Protocol(
            key=f"{iou_type}_fixed",
            title=f"LVIS {shape_name(iou_type)} Fixed-AP",
            description=(
                f"The {FIXED_AP_DETECTIONS:,} best detections of each category over all images "
                f"count, however many of an image (arXiv 2102.01066). {federated}"
            ),
            rule=partial(limited_by_category, iou_type=iou_type),
        ),
    ]


def limited_by_image(
    ground_truth: GroundTruth,
    detections: Detections,
    earlier: Mapping[str, Scores],
    *,
    iou_type: str,
) -> Scores:
    """LVIS's AP (arXiv 1908.03195)."""
    say_what_is_beyond(ground_truth, detections, VAST_MAX_DETS, by_category=False)
    rows = best_of_each(detections.image_index, detections.scores, VAST_MAX_DETS)
    return federated_scores(ground_truth, detections[rows], iou_type, VAST_MAX_DETS)


def limited_by_category(
    ground_truth: GroundTruth,
    detections: Detections,
    earlier: Mapping[str, Scores],
    *,
    iou_type: str,
) -> Scores:
    """LVIS's Fixed-AP (Dave et al., arXiv 2102.01066)."""
    rows = best_of_each(detections.category_index, detections.scores, FIXED_AP_DETECTIONS)
    return federated_scores(ground_truth, detections[rows], iou_type, FIXED_AP_DETECTIONS)


def say_what_is_beyond(
    ground_truth: GroundTruth, detections: Detections, limit: int, *, by_category: bool
) -> None:
    """Warn of detections that a limit leaves out, an image or an image and category."""
    beyond, groups = num_beyond(detections.image_index, limit)
    if beyond and by_category:
        pairs = detections.image_index * ground_truth.num_categories + detections.category_index
        beyond, groups = num_beyond(pairs, limit)
    if beyond:
        logger.warning(
            "%d of %d detections do not count: %d %s have more than %d; the best by score stay, of "
            "equal scores the earlier ones",
            beyond,
            len(detections),
            groups,
            "pairs of image and category" if by_category else "images",
            limit,
        )


def federated_scores(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, limit: int
) -> Scores:
    """Scores by LVIS's rules of detections that a limit has passed already."""
    curves = accumulate_federated(ground_truth, detections, iou_type=iou_type, limit=limit)
    return score(curves, ground_truth, detections)


def shape_name(iou_type: str) -> str:
    """What is compared: boxes or masks."""
    return "mask" if iou_type == "segm" else "box"


# By Metadata.evaluator_type.
PROTOCOLS: dict[str, ProtocolBuilder] = {
    "coco": coco_protocols,
    "lvis": lvis_protocols,
    "v3det": v3det_protocols,
}
