# SPDX-License-Identifier: Apache-2.0
"""The datasets that vastdet knows by name, under DETECTRON2_DATASETS; importing reads no file.

Detectron2 has registered COCO, LVIS and Pascal VOC; those names and their metadata stay. What is
added to them: what an evaluator expects in the metadata, an error that says where a missing file
should be, and LVIS without the `lvis` package.
"""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES as LVIS_V0_5_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES as LVIS_V1_CATEGORIES
from detectron2.data.datasets.lvis_v1_category_image_count import (
    LVIS_CATEGORY_IMAGE_COUNT as LVIS_V1_IMAGE_COUNTS,
)

from vastdet.data.panoptic import load_panoptic_records, panoptic_space
from vastdet.data.record_table import Record
from vastdet.data.register import (
    dataset_root,
    register_annotation_file,
    replace_loader,
    require_dataset_path,
)
from vastdet.vocabulary import CategorySpace

logger = logging.getLogger(__name__)

V3DET_TREE = "v3det/annotations/v3det_2023_v1_category_tree.json"

# name: (annotation file, image folder). V3Det's file names start with "images/".
V3DET = {
    "v3det_train": ("v3det/annotations/v3det_2023_v1_train.json", "v3det"),
    "v3det_val": ("v3det/annotations/v3det_2023_v1_val.json", "v3det"),
    "v3det_ovd_base_train": ("v3det/annotations/v3det_2023_v1_train_ovd_base.json", "v3det"),
}
COCO_FORMAT = {
    "objects365_v2_train": ("objects365/annotations/objects365_v2_train.json", "objects365"),
    "objects365_v2_val": ("objects365/annotations/objects365_v2_val.json", "objects365"),
    "bccd_train": ("bccd/annotations/train.json", "bccd/images"),
    "bccd_val": ("bccd/annotations/val.json", "bccd/images"),
    **{
        f"voc_{year}_{split}_coco": (f"VOC{year}/{split}_coco.json", f"VOC{year}/JPEGImages")
        for year, split in (
            (2007, "trainval"), (2007, "train"), (2007, "val"), (2007, "test"),
            (2012, "trainval"), (2012, "train"), (2012, "val"),
        )
    },
}  # fmt: skip
LVIS_MINIVAL = ("lvis_v1_minival", "lvis/lvis_v1_minival.json", "coco")


def register_all(root: str) -> None:
    """Register every built-in dataset below the folder `root`."""
    _guard_detectron2_coco()
    _complete_detectron2_voc()
    _complete_detectron2_lvis()
    _complete_detectron2_panoptic()
    name, json_file, image_root = LVIS_MINIVAL
    register_annotation_file(
        name,
        json_file=os.path.join(root, json_file),
        image_root=os.path.join(root, image_root),
        evaluator_type="lvis",
        read_space=lvis_v1_space,
        extra_annotation_keys=("segmentation",),
    )
    for name, (json_file, image_root) in COCO_FORMAT.items():
        register_annotation_file(
            name,
            json_file=os.path.join(root, json_file),
            image_root=os.path.join(root, image_root),
            evaluator_type="coco",
        )
    for name, (json_file, image_root) in V3DET.items():
        path = os.path.join(root, json_file)
        register_annotation_file(
            name,
            json_file=path,
            image_root=os.path.join(root, image_root),
            evaluator_type="v3det",
            read_space=partial(v3det_space, name, path, os.path.join(root, V3DET_TREE)),
        )


def lvis_v1_space() -> CategorySpace:
    """The 1,203 categories of LVIS v1, with their training image counts, from Detectron2's tables.

    Names are first synonyms, as in Detectron2's `thing_classes`.
    """
    counts = {c["id"]: c["image_count"] for c in LVIS_V1_IMAGE_COUNTS}
    return _lvis_space({**c, "image_count": counts[c["id"]]} for c in LVIS_V1_CATEGORIES)


def lvis_v0_5_space() -> CategorySpace:
    """The 1,230 categories of LVIS v0.5, from Detectron2's table."""
    return _lvis_space(LVIS_V0_5_CATEGORIES)


def v3det_space(name: str, json_file: str, tree_file: str) -> CategorySpace:
    """V3Det's categories from an annotation file, and its tree where that file is there."""
    require_dataset_path(json_file, name)
    if not os.path.exists(tree_file):
        logger.warning(
            f"dataset '{name}' has no category tree at {tree_file}: its categories have no "
            "hierarchy (datasets/README.md, V3Det)"
        )
        return CategorySpace.from_v3det(json_file)
    return CategorySpace.from_v3det(json_file, category_tree=tree_file)


def _lvis_space(categories: Any) -> CategorySpace:
    return CategorySpace.from_lvis([{**c, "name": c["synonyms"][0]} for c in categories])


def _guard_detectron2_coco() -> None:
    for name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        if name.startswith("coco_20") and metadata.get("evaluator_type") == "coco":
            _guard(name, (metadata.json_file, metadata.image_root))


def _complete_detectron2_voc() -> None:
    for name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") != "pascal_voc":
            continue
        metadata.image_root = os.path.join(metadata.dirname, "JPEGImages")
        # The XML files have names only; prepare_voc.py numbers the classes 1..20 as well.
        ids = {k + 1: k for k in range(len(metadata.thing_classes))}
        metadata.thing_dataset_id_to_contiguous_id = ids
        split = os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
        _guard(name, (split,))


def _complete_detectron2_lvis() -> None:
    """Load Detectron2's LVIS names by our reader: its own needs a package that is not installed."""
    readers = {"lvis_v1_": lvis_v1_space, "lvis_v0.5_": lvis_v0_5_space}
    for name in DatasetCatalog.list():
        for prefix, read_space in readers.items():
            if not name.startswith(prefix) or name.endswith("cocofied"):
                continue
            metadata = MetadataCatalog.get(name)
            register_annotation_file(
                name,
                json_file=metadata.json_file,
                image_root=metadata.image_root,
                evaluator_type="lvis",
                read_space=read_space,
                extra_annotation_keys=("segmentation",),
            )


def _complete_detectron2_panoptic() -> None:
    """Give records sizes and boxes, and the metadata the categories of things and stuff."""
    for name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        if name.startswith("coco_20") and name.endswith("_panoptic"):
            metadata.category_space = panoptic_space(metadata)
            replace_loader(name, partial(load_panoptic_records, name))


def _guard(name: str, paths: Sequence[str]) -> None:
    """Let a loader of Detectron2 fail with our message when one of its paths is missing."""
    load: Callable[[], list[Record]] = DatasetCatalog[name]

    def load_checked() -> list[Record]:
        for path in paths:
            require_dataset_path(path, name)
        return load()

    replace_loader(name, load_checked)


register_all(dataset_root())

__all__ = ["lvis_v1_space", "register_all", "v3det_space"]
