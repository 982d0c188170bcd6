# SPDX-License-Identifier: Apache-2.0
"""The records of registered datasets as loaders take them, and a line of the log on what they hold.

Detectron2 logs the boxes of every category, a line for three of them: of a vast vocabulary
thousands of lines at each evaluation.
"""

import logging
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import check_metadata_consistency

from vastdet.data.proposals import records_with_proposals
from vastdet.data.record_table import Record, RecordTable
from vastdet.data.register import load_tables

NUM_NAMED_CATEGORIES = 5

logger = logging.getLogger(__name__)


def load_training_records(cfg: CfgNode) -> Sequence[Record]:
    """The records of `cfg.DATASETS.TRAIN`, filtered as Detectron2's training loader does.

    Annotation files of our own reader give a `RecordTable`, other datasets a list. Raises
    ValueError when no usable record is left.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; give the name of a registered dataset.")
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    return load_records(
        cfg.DATASETS.TRAIN,
        "DATASETS.TRAIN",
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints,
    )


def load_test_records(cfg: CfgNode, dataset_name: str) -> Sequence[Record]:
    """All records of one dataset, as `load_training_records`.

    With MODEL.LOAD_PROPOSALS the dataset is one of `cfg.DATASETS.TEST`, which tells its file.
    """
    files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        of_name = zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, strict=False)
        files = [file for name, file in of_name if name == dataset_name]
    return load_records([dataset_name], "DATASETS.TEST", proposal_files=files, filter_empty=False)


def load_records(
    names: Sequence[str],
    setting: str,
    *,
    proposal_files: Sequence[str] | None = None,
    filter_empty: bool,
    min_keypoints: int = 0,
) -> Sequence[Record]:
    """The records of datasets, and a line of the log on their categories.

    Args:
        names: registered datasets of the same categories.
        setting: where in the config they are named, for messages.
        proposal_files: one a dataset where records carry proposals.
        filter_empty: leave out images without a box that is no crowd.
        min_keypoints: leave out images with fewer, as Detectron2 does.

    Raises:
        ValueError: no usable record is left, or an annotation's category is none of the dataset's.
    """
    tables = None if min_keypoints or proposal_files is not None else load_tables(names)
    if tables is not None:
        check_metadata_consistency("thing_classes", names)
        table = filtered(RecordTable.concatenate(tables), names, setting, filter_empty)
        log_category_counts(len(table), table.categories[~table.is_crowd], names)
        return table
    options = {"filter_empty": filter_empty, "min_keypoints": min_keypoints}
    try:
        if proposal_files is None:
            records = get_detection_dataset_dicts(names, check_consistency=False, **options)
        else:
            records = records_with_proposals(names, proposal_files, **options)
    except AssertionError as error:
        # Detectron2 reports an empty dataset by assertion.
        raise ValueError(f"{setting} {tuple(names)} holds no usable record: {error}") from error
    if isinstance(records, list) and MetadataCatalog.get(names[0]).get("thing_classes"):
        check_metadata_consistency("thing_classes", names)
        log_category_counts(len(records), categories_of(records), names)
    return records


def filtered(
    table: RecordTable, names: Sequence[str], setting: str, filter_empty: bool
) -> RecordTable:
    """The records of the datasets `names`, where asked for only those with a box to learn.

    Raises ValueError when none is left.
    """
    num_before = len(table)
    if filter_empty:
        table = table.without_empty()
        logger.info(
            "%d of %d images have no box, or crowds only, and are left out",
            num_before - len(table),
            num_before,
        )
    if not len(table):
        raise ValueError(
            f"{setting} {tuple(names)} holds no usable record: none of {num_before} images has a "
            "box that is no crowd; DATALOADER.FILTER_EMPTY_ANNOTATIONS False keeps them"
        )
    return table


def categories_of(records: Sequence[Record]) -> np.ndarray:
    """(A,) contiguous ids of the annotations that are no crowd."""
    found = [
        annotation["category_id"]
        for record in records
        for annotation in record.get("annotations", ())
        if not annotation.get("iscrowd", 0)
    ]
    return np.array(found, dtype=np.int64)


def log_category_counts(num_images: int, categories: np.ndarray, names: Sequence[str]) -> None:
    """Log how many boxes the categories have: the extremes, and how many have none.

    Args:
        num_images: of the datasets.
        categories: (A,) contiguous ids of their boxes.
        names: the datasets.

    Raises:
        ValueError: an id is none of the categories of the first dataset.
    """
    classes = MetadataCatalog.get(names[0]).thing_classes
    strange = categories[(categories < 0) | (categories >= len(classes))]
    if strange.size:
        raise ValueError(
            f"{tuple(names)} have boxes of category {strange[0]}; expected ids of 0 to "
            f"{len(classes) - 1}, the {len(classes)} thing_classes of {names[0]!r}: map the ids, "
            "or register all classes"
        )
    if not categories.size:
        logger.info("%d images, no boxes", num_images)
        return
    counts = np.bincount(categories, minlength=len(classes))
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]

    def listed(chosen: np.ndarray) -> str:
        return ", ".join(f"{classes[k]} ({counts[k]})" for k in chosen)

    logger.info(
        "%d images, %d boxes; %d of %d categories have boxes. Most: %s. Fewest: %s",
        num_images,
        counts.sum(),
        len(order),
        len(counts),
        listed(order[:NUM_NAMED_CATEGORIES]),
        listed(order[: -NUM_NAMED_CATEGORIES - 1 : -1]),
    )
