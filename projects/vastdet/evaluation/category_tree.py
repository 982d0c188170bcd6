# SPDX-License-Identifier: Apache-2.0
"""Matching on a category tree as V3Det's own evaluation has it (arXiv 2304.03752).

A box of a category is also, truly, a box of every category above it, so a detection of something
more special than the label may be right. Such a detection is not judged: it counts neither as
found nor as false. A detection of something more general than the label stays false.
"""

from dataclasses import replace

import numpy as np
from scipy import sparse

from vastdet.evaluation.detections import Detections
from vastdet.evaluation.engines import ENGINES, Curves, fill
from vastdet.evaluation.ground_truth import GroundTruth

# A box with an area outside of every range of COCO's, "all" (0 to 1e10) too, is one that is there
# to be matched but not to be found: both engines ignore it and the detection that takes it.
IGNORED_AREA = 1e11
# Boxes whose descendants are looked up at a time; bounds the memory when labels are very general.
CHUNK_BOXES = 4096


def descendant_copies(
    ground_truth: GroundTruth, detections: Detections
) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes also stand for which descendants of their category: two (C,) int64 arrays.

    One pair (position of the box, contiguous id of the descendant) for every descendant that is
    detected in the box's image, by position and then by id.

    Raises:
        ValueError: the categories have no hierarchy.
    """
    hierarchy = ground_truth.space.hierarchy
    if hierarchy is None:
        raise ValueError(
            f"{ground_truth.source or 'the dataset'} has no category tree, which tree-aware AP "
            "needs; put V3Det's category tree file in its place (datasets/README.md)"
        )
    num_categories, num_images = ground_truth.num_categories, len(ground_truth.image_ids)
    below, above = hierarchy.category_ancestor_pairs.T
    descendants = boolean_matrix(above, below, (num_categories, num_categories))
    # Only labelled boxes of categories with descendants can have copies, and only categories that
    # have boxes of their own can change by them.
    judged = np.zeros(num_categories, dtype=bool)
    judged[ground_truth.category_index[~ground_truth.is_crowd]] = True
    relevant = judged & (descendants.sum(axis=0).A1 > 0)
    rows = np.flatnonzero(relevant[detections.category_index])
    detected = boolean_matrix(
        detections.image_index[rows],
        detections.category_index[rows],
        (num_images, num_categories),
    )
    boxes = np.flatnonzero(descendants.sum(axis=1).A1[ground_truth.category_index] > 0)
    found: list[np.ndarray] = [np.zeros((2, 0), dtype=np.int64)]
    for start in range(0, len(boxes), CHUNK_BOXES):
        chunk = boxes[start : start + CHUNK_BOXES]
        candidates = descendants[ground_truth.category_index[chunk]]
        position, category = candidates.multiply(
            detected[ground_truth.image_index[chunk]]
        ).nonzero()
        found.append(np.stack([chunk[position], category]).astype(np.int64))
    box, category = np.concatenate(found, axis=1)
    order = np.lexsort((category, box))
    return box[order], category[order]


def boolean_matrix(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
) -> sparse.csr_matrix:
    """A sparse matrix that is True at the given places, each of which may be given many times."""
    # True + True is True.
    return sparse.csr_matrix((np.ones(len(rows), dtype=bool), (rows, columns)), shape=shape)


def with_descendant_copies(
    ground_truth: GroundTruth, boxes: np.ndarray, categories: np.ndarray
) -> GroundTruth:
    """The ground truth, followed by ignored copies of some boxes under other categories.

    A copy keeps its box's crowd flag: one detection at most takes a copy of an ordinary box.
    """
    copies = ground_truth.take(boxes)
    masks = ground_truth.segmentations
    return replace(
        ground_truth,
        image_index=np.concatenate([ground_truth.image_index, copies.image_index]),
        category_index=np.concatenate([ground_truth.category_index, categories]),
        boxes=np.concatenate([ground_truth.boxes, copies.boxes]),
        areas=np.concatenate([ground_truth.areas, np.full(len(boxes), IGNORED_AREA)]),
        is_crowd=np.concatenate([ground_truth.is_crowd, copies.is_crowd]),
        segmentations=None if masks is None else masks + (copies.segmentations or []),
    )


def tree_aware_curves(
    plain: Curves,
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    engine: str = "hotcoco",
    iou_type: str = "bbox",
) -> Curves:
    """The curves with detections of a label's descendants ignored, from the plain curves.

    Only categories that got copies can differ, so only they are matched again.

    Raises:
        ValueError: the categories have no hierarchy; otherwise as `engines.fill`.
    """
    boxes, categories = descendant_copies(ground_truth, detections)
    changed = np.unique(categories)
    curves = replace(
        plain,
        precision=plain.precision.copy(),
        recall=plain.recall.copy(),
        scores=plain.scores.copy(),
    )
    extended = with_descendant_copies(ground_truth, boxes, categories)
    fill(
        curves,
        extended,
        detections,
        run=ENGINES[engine],
        iou_type=iou_type,
        categories=changed,
    )
    return curves
