# SPDX-License-Identifier: Apache-2.0
"""The numbers of an evaluation: summary, per category, per group of categories, in percent.

Shapes: T IoU thresholds, R recall thresholds, K categories, A area ranges, M detection limits.
"""

from dataclasses import dataclass

import numpy as np

from vastdet.evaluation.detections import Detections
from vastdet.evaluation.engines import Curves
from vastdet.evaluation.ground_truth import GroundTruth

FREQUENCY_NAMES = {"r": "rare", "c": "common", "f": "frequent"}
# The groups' names in summary keys: LVIS has APr, APc, APf.
GROUP_SUFFIXES = {
    **{name: letter for letter, name in FREQUENCY_NAMES.items()},
    "base": "base",
    "novel": "novel",
}


@dataclass(frozen=True)
class CategoryScores:
    """One row a category; percent, NaN where the category has no ground truth.

    Attributes:
        ap, ap50, ap75, aps, apm, apl: (K,) float64, AP at the last detection limit.
        ar, ars, arm, arl: (K,) float64, AR at the last detection limit.
        num_boxes: (K,) ground-truth boxes that are not crowd.
        num_images: (K,) images with such a box.
        num_detections: (K,).
    """

    ap: np.ndarray
    ap50: np.ndarray
    ap75: np.ndarray
    aps: np.ndarray
    apm: np.ndarray
    apl: np.ndarray
    ar: np.ndarray
    ars: np.ndarray
    arm: np.ndarray
    arl: np.ndarray
    num_boxes: np.ndarray
    num_images: np.ndarray
    num_detections: np.ndarray


# Of `CategoryScores`, what is averaged over a group of categories.
GROUP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Scores:
    """Everything that is reported of one evaluation with one IoU type.

    `summary` has Detectron2's keys (AP, AP50, AP75, APs, APm, APl), AR at every detection limit
    (AR1, AR10, AR100) and area (ARs, ARm, ARl), and the AP of every group (APr, APc, APf; APbase,
    APnovel). `groups` has the groups that occur, by name: how many of their categories have ground
    truth, and the means over these.
    """

    summary: dict[str, float]
    categories: CategoryScores
    groups: dict[str, dict[str, float]]
    curves: Curves


def mean_percent(values: np.ndarray) -> float:
    """Mean of the entries that are not -1 (COCO's mark of absence), in percent; NaN without any."""
    present = values[values > -1]
    return float(present.mean() * 100) if present.size else float("nan")


def mean_percent_of_categories(values: np.ndarray) -> np.ndarray:
    """(K,) `mean_percent` of each category of (..., K)."""
    present = values > -1
    before = tuple(range(values.ndim - 1))
    count = present.sum(axis=before)
    total = np.sum(values, axis=before, where=present)
    return np.divide(100 * total, count, out=np.full(len(count), np.nan), where=count > 0)


def score(curves: Curves, ground_truth: GroundTruth, detections: Detections) -> Scores:
    """Reduce curves to numbers as COCO's summary defines them.

    AP is the mean precision over the recall thresholds, the IoU thresholds (or the one named) and
    the categories with ground truth, at the last detection limit; AR is the mean recall.
    """
    categories = score_categories(curves, ground_truth, detections)
    groups = score_groups(categories, ground_truth)
    summary = summarize(curves)
    summary |= {f"AP{GROUP_SUFFIXES[name]}": row["AP"] for name, row in groups.items()}
    return Scores(summary=summary, categories=categories, groups=groups, curves=curves)


def threshold_index(curves: Curves, iou: float) -> int:
    """Where an IoU threshold stands among those of the curves."""
    return int(np.flatnonzero(np.isclose(curves.iou_thresholds, iou))[0])


def summarize(curves: Curves) -> dict[str, float]:
    """COCO's summary numbers under Detectron2's keys, in percent; NaN where undefined."""
    precision, recall = curves.precision, curves.recall
    areas = [(i, label[0]) for i, label in enumerate(curves.area_labels) if label != "all"]
    everything = curves.area_labels.index("all")
    at_50, at_75 = threshold_index(curves, 0.5), threshold_index(curves, 0.75)
    summary = {
        "AP": mean_percent(precision[:, :, :, everything, -1]),
        "AP50": mean_percent(precision[at_50, :, :, everything, -1]),
        "AP75": mean_percent(precision[at_75, :, :, everything, -1]),
    }
    for index, letter in areas:
        summary[f"AP{letter}"] = mean_percent(precision[:, :, :, index, -1])
    for index, limit in enumerate(curves.max_dets):
        summary[f"AR{limit}"] = mean_percent(recall[:, :, everything, index])
    for index, letter in areas:
        summary[f"AR{letter}"] = mean_percent(recall[:, :, index, -1])
    return summary


def score_categories(
    curves: Curves, ground_truth: GroundTruth, detections: Detections
) -> CategoryScores:
    """The same numbers for each category on its own, and how much there is of it."""
    precision, recall = curves.precision[..., -1], curves.recall[..., -1]
    area = {label: index for index, label in enumerate(curves.area_labels)}
    at_50, at_75 = threshold_index(curves, 0.5), threshold_index(curves, 0.75)
    counted = ~ground_truth.is_crowd
    category, image = ground_truth.category_index[counted], ground_truth.image_index[counted]
    pairs = np.unique(np.stack([category, image]), axis=1)
    num_categories = ground_truth.num_categories

    def count(index: np.ndarray) -> np.ndarray:
        return np.bincount(index, minlength=num_categories)

    reduce = mean_percent_of_categories
    return CategoryScores(
        ap=reduce(precision[..., area["all"]]),
        ap50=reduce(precision[at_50, ..., area["all"]]),
        ap75=reduce(precision[at_75, ..., area["all"]]),
        aps=reduce(precision[..., area["small"]]),
        apm=reduce(precision[..., area["medium"]]),
        apl=reduce(precision[..., area["large"]]),
        ar=reduce(recall[..., area["all"]]),
        ars=reduce(recall[..., area["small"]]),
        arm=reduce(recall[..., area["medium"]]),
        arl=reduce(recall[..., area["large"]]),
        num_boxes=count(category),
        num_images=count(pairs[0]),
        num_detections=count(detections.category_index),
    )


def category_groups(ground_truth: GroundTruth) -> dict[str, np.ndarray]:
    """(K,) bool masks of the groups that the categories state: by frequency, and base and novel."""
    letters = np.array([letter or "" for letter in ground_truth.space.frequency])
    groups = {name: letters == letter for letter, name in FREQUENCY_NAMES.items()}
    if ground_truth.space.novel is not None:
        novel = np.array(ground_truth.space.novel, dtype=bool)
        if novel.any():
            groups |= {"base": ~novel, "novel": novel}
    return {name: mask for name, mask in groups.items() if mask.any()}


def score_groups(
    categories: CategoryScores, ground_truth: GroundTruth
) -> dict[str, dict[str, float]]:
    """Means over the categories of each group that have ground truth (of the size, for a size)."""
    table = {}
    for name, mask in category_groups(ground_truth).items():
        row = {"categories": float((mask & (categories.num_boxes > 0)).sum())}
        for key in GROUP_COLUMNS:
            values = getattr(categories, key.lower())[mask]
            values = values[~np.isnan(values)]
            row[key] = float(values.mean()) if values.size else float("nan")
        table[name] = row
    return table
