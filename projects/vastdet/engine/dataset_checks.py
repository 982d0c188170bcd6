# SPDX-License-Identifier: Apache-2.0
"""Checks, before anything runs, that the datasets of a config exist and fit the model."""

import difflib
import os
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from vastdet.engine.config_files import class_count_keys

# Children of a model that count other things than detection categories.
NOT_DETECTION = ("backbone", "sem_seg_head", "panoptic_head")


def check_datasets(names: Iterable[str]) -> None:
    """Raise ValueError for an unregistered name, FileNotFoundError for a folder that is missing."""
    registered = DatasetCatalog.list()
    for name in names:
        if name not in registered:
            close = difflib.get_close_matches(name, registered, n=3, cutoff=0.4)
            hint = f"Close names: {', '.join(close)}. " if close else ""
            raise ValueError(
                f"There is no dataset {name!r} (DATASETS.TRAIN, DATASETS.TEST). {hint}Your own "
                f"data in COCO format: --register {name} annotations.json image_folder"
            )
        metadata = MetadataCatalog.get(name)
        for key in ("json_file", "image_root", "dirname"):
            path = metadata.get(key)
            # Paths like generated://... are made on the fly.
            if not path or "://" in path or os.path.exists(path):
                continue
            root = os.environ.get("DETECTRON2_DATASETS", "datasets")
            raise FileNotFoundError(
                f"Dataset {name!r} needs {path}, which does not exist. The built-in datasets are "
                f"looked for under {root!r}: set the environment variable DETECTRON2_DATASETS to "
                "the folder that holds them (datasets/README.md shows the tree)."
            )


def class_count(dataset_name: str) -> int:
    """The number of categories of a registered dataset."""
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes") is None:
        # Detectron2's COCO registration learns the names when it reads the file.
        DatasetCatalog.get(dataset_name)
    return len(metadata.thing_classes)


def model_class_count(model: nn.Module) -> int | None:
    """The number of detection categories a model was built for; None if it does not say."""
    parts = [model, *(m for n, m in model.named_children() if n not in NOT_DETECTION)]
    counts = [getattr(part, "num_classes", None) for part in parts]
    return next((count for count in counts if isinstance(count, int)), None)


def check_class_counts(cfg: CfgNode, model: nn.Module, names: Iterable[str]) -> None:
    """Raise ValueError when a dataset has another number of categories than the model."""
    expected = model_class_count(model)
    for name in names if expected is not None else ():
        found = class_count(name)
        if found == expected:
            continue
        values = {key: value_of(cfg, key) for key in class_count_keys(cfg)}
        keys = [key for key, value in values.items() if value == expected] or list(values)
        raise ValueError(
            f"Dataset {name!r} has {found} categories, but the model is built for {expected}. "
            f"Set {' or '.join(keys)} to {found}, or choose another dataset."
        )


def value_of(cfg: CfgNode, key: str) -> object:
    """The value of a dotted key."""
    node: object = cfg
    for part in key.split("."):
        assert isinstance(node, dict)
        node = node[part]
    return node
