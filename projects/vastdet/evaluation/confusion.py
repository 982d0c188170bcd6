# SPDX-License-Identifier: Apache-2.0
"""Which category is taken for which: a sparse confusion matrix that also fits 13,204 categories.

Shapes: K categories, P pairs of categories that occur, C candidate pairs of detection and box.
"""

from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

from vastdet.evaluation.detections import Detections
from vastdet.evaluation.ground_truth import GroundTruth

IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of (labelled, predicted) category pairs; number K stands for the background.

    (k, K) counts boxes of category k that were missed, (K, k) detections of k where nothing is.

    Attributes:
        labelled: (P,) int64 in [0, K].
        predicted: (P,) int64 in [0, K].
        count: (P,) int64, positive.
        num_categories: K.
        iou_threshold: lowest IoU of a match.
        score_threshold: lowest score of a detection that takes part.
    """

    labelled: np.ndarray
    predicted: np.ndarray
    count: np.ndarray
    num_categories: int
    iou_threshold: float
    score_threshold: float

    def dense(self) -> np.ndarray:
        """(K + 1, K + 1) int64 counts, rows labelled, columns predicted."""
        size = self.num_categories + 1
        matrix = np.zeros((size, size), dtype=np.int64)
        matrix[self.labelled, self.predicted] = self.count
        return matrix

    def confused_pairs(self) -> list[tuple[int, int, int]]:
        """(labelled, predicted, count) of different categories, most frequent first."""
        background = self.num_categories
        wrong = (
            (self.labelled != self.predicted)
            & (self.labelled != background)
            & (self.predicted != background)
        )
        rows = np.flatnonzero(wrong)
        order = rows[np.lexsort((self.predicted[rows], self.labelled[rows], -self.count[rows]))]
        columns = (self.labelled[order], self.predicted[order], self.count[order])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def confusion_matrix(
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    score_threshold: float,
    iou_threshold: float = IOU_THRESHOLD,
) -> ConfusionMatrix:
    """Match boxes within each category, then the rest across categories, and count the pairs.

    Within an image the detections with at least `score_threshold` choose in the order of their
    scores; each takes the free box of its category that it overlaps most, at IoU >=
    `iou_threshold`, so the diagonal counts COCO's true positives. Those left over then choose in
    the same way among the boxes left over, and what still remains is a false alarm. A detection
    left over that lies (by the same share of its own area) in a crowd region of its category is
    not counted, nor are crowd regions.
    """
    chosen = detections[detections.scores >= score_threshold]
    chosen = chosen[np.lexsort((-chosen.scores, chosen.image_index))]
    real = np.flatnonzero(~ground_truth.is_crowd)
    detection, box, in_crowd = overlapping_pairs(ground_truth, chosen, iou_threshold)
    taken, taker = greedy_matches(detection, box)
    num_categories = ground_truth.num_categories
    false_alarm = ~in_crowd
    false_alarm[taken] = False
    missed = np.setdiff1d(real, taker)
    labels, predictions = ground_truth.category_index, chosen.category_index
    rows = [
        labels[taker],
        labels[missed],
        np.full(int(false_alarm.sum()), num_categories),
    ]
    columns = [
        predictions[taken],
        np.full(len(missed), num_categories),
        predictions[false_alarm],
    ]
    codes = np.concatenate(rows) * (num_categories + 1) + np.concatenate(columns)
    pairs, count = np.unique(codes, return_counts=True)
    return ConfusionMatrix(
        labelled=pairs // (num_categories + 1),
        predicted=pairs % (num_categories + 1),
        count=count,
        num_categories=num_categories,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
    )


def overlapping_pairs(
    ground_truth: GroundTruth, detections: Detections, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (detection, box) of one image that overlap enough, in the order of their claims.

    Pairs of one category come first, then those of earlier detections, then larger overlaps.
    Detections must be ordered by image. Returns two (C,) int64 arrays, crowd regions left out, and
    for every detection whether it lies in a crowd region of its own category.
    """
    order = np.argsort(ground_truth.image_index, kind="stable")
    num_images = len(ground_truth.image_ids)
    edges = np.arange(num_images + 1)
    first_box = np.searchsorted(ground_truth.image_index[order], edges)
    first_detection = np.searchsorted(detections.image_index, edges)
    in_crowd = np.zeros(len(detections), dtype=bool)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    occupied = (np.diff(first_box) > 0) & (np.diff(first_detection) > 0)
    for image in np.flatnonzero(occupied):
        boxes = order[first_box[image] : first_box[image + 1]]
        begin, end = first_detection[image], first_detection[image + 1]
        crowd = ground_truth.is_crowd[boxes]
        overlaps = mask_util.iou(
            detections.boxes[begin:end], ground_truth.boxes[boxes], crowd.astype(np.uint8).tolist()
        )
        enough = overlaps >= iou_threshold
        same = (
            detections.category_index[begin:end, None] == ground_truth.category_index[boxes][None]
        )
        in_crowd[begin:end] = (enough & crowd & same).any(axis=1)
        other_claim = ~same & in_crowd[begin:end, None]
        row, column = np.nonzero(enough & ~crowd & ~other_claim)
        found.append((row + begin, boxes[column], overlaps[row, column]))
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), in_crowd
    detection, box, overlap = (np.concatenate(part) for part in zip(*found, strict=True))
    other = detections.category_index[detection] != ground_truth.category_index[box]
    best_first = np.lexsort((box, -overlap, detection, other))
    return detection[best_first], box[best_first], in_crowd


def greedy_matches(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The one-to-one matches of taking pairs in order, skipping those with a taken partner.

    Rather than pair by pair, each round takes all pairs that come first for both partners: no
    later decision can touch them, so the result is the same.
    """
    taken: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    taker: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    while len(first):
        leads_first = np.zeros(len(first), dtype=bool)
        leads_second = np.zeros(len(first), dtype=bool)
        leads_first[np.unique(first, return_index=True)[1]] = True
        leads_second[np.unique(second, return_index=True)[1]] = True
        mutual = leads_first & leads_second
        taken.append(first[mutual])
        taker.append(second[mutual])
        free = ~np.isin(first, first[mutual]) & ~np.isin(second, second[mutual])
        first, second = first[free], second[free]
    return np.concatenate(taken), np.concatenate(taker)
