# SPDX-License-Identifier: Apache-2.0
"""Which detections and categories count: the best of an image or category, and AR^C.

Shapes: D detections, N images, K categories, S selected categories an image.
"""

import numpy as np

from vastdet.evaluation.detections import Detections
from vastdet.evaluation.ground_truth import GroundTruth

NOTHING = -1
CHUNK_IMAGES = 128


def best_of_each(groups: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
    """Positions, ascending, of the `limit` best of each group; the earlier of equal scores first.

    Args:
        groups: (D,) group numbers from 0.
        scores: (D,).
        limit: at least 1.
    """
    counts = np.bincount(groups)
    if not counts.size or counts.max() <= limit:
        return np.arange(len(scores))
    order = np.lexsort((-scores, groups))
    start = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.arange(len(scores)) - start[groups[order]]
    return np.sort(order[rank < limit])


def num_beyond(groups: np.ndarray, limit: int) -> tuple[int, int]:
    """How many rows are beyond the `limit` best of their group, and of how many groups."""
    excess = np.unique(groups, return_counts=True)[1] - limit
    return int(excess[excess > 0].sum()), int((excess > 0).sum())


def detected_categories(detections: Detections, *, num_images: int, limit: int) -> np.ndarray:
    """(N, limit) the categories detected in each image, by their best score, distinct; -1 after."""
    selected = np.full((num_images, limit), NOTHING, dtype=np.int64)
    images = detections.image_index
    ordered = bool((images[1:] >= images[:-1]).all())
    order = np.arange(len(images)) if ordered else np.argsort(images, kind="stable")
    starts = np.arange(0, num_images, CHUNK_IMAGES)
    edges = np.searchsorted(images if ordered else images[order], [*starts, num_images])
    # A few images at a time: sorting stays in the processor's cache.
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows = order[start:stop]
        image, category, score = (
            images[rows],
            detections.category_index[rows],
            -detections.scores[rows],
        )
        by_pair = np.lexsort((score, category, image))
        image, category, score = image[by_pair], category[by_pair], score[by_pair]
        best = np.ones(len(rows), dtype=bool)
        best[1:] = (image[1:] != image[:-1]) | (category[1:] != category[:-1])
        image, category, score = image[best], category[best], score[best]
        by_score = np.lexsort((score, image))
        image, category = image[by_score], category[by_score]
        rank = np.arange(len(image)) - np.searchsorted(image, image)
        kept = rank < limit
        selected[image[kept], rank[kept]] = category[kept]
    return selected


def category_recall(ground_truth: GroundTruth, selected: np.ndarray) -> float:
    """AR^C in percent: how much of what is labelled in an image is among its selected categories.

    The share of an image's distinct labelled categories that are in its row of `selected`, averaged
    over the images that have a label. CQ-DINO reports AR^C of its category selection (tables 3 and
    4) as a "category-level average recall" and does not define it further; this is our reading of
    it. NaN where nothing is labelled. Crowd boxes are no labels.

    Args:
        ground_truth: N images of K categories.
        selected: (N, S) contiguous ids, in any order; -1 for no category.

    Raises:
        ValueError: another number of rows than images, or ids outside -1..K-1.
    """
    num_images, num_categories = len(ground_truth.image_ids), ground_truth.num_categories
    if selected.ndim != 2 or len(selected) != num_images:
        raise ValueError(
            f"selected categories have the shape {selected.shape}, expected ({num_images}, S): one "
            "row an image"
        )
    outside = selected[(selected < NOTHING) | (selected >= num_categories)]
    if outside.size:
        raise ValueError(
            f"{outside.size} selected categories are outside 0..{num_categories - 1} (and not -1, "
            f"which means none), the first is {outside[0]}"
        )
    counted = ~ground_truth.is_crowd
    images, categories = ground_truth.image_index[counted], ground_truth.category_index[counted]
    labels = np.unique(images * num_categories + categories)
    row, _ = np.nonzero(selected != NOTHING)
    chosen = row * num_categories + selected[selected != NOTHING]
    image = labels // num_categories
    found = np.bincount(image, weights=np.isin(labels, chosen), minlength=num_images)
    total = np.bincount(image, minlength=num_images)
    labelled = total > 0
    if not labelled.any():
        return float("nan")
    return float((found[labelled] / total[labelled]).mean() * 100)
