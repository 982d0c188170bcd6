# SPDX-License-Identifier: Apache-2.0
"""Checks, before anything runs, that the datasets of a config exist and fit the model."""

from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from vastdet.data import category_space
from vastdet.data.register import require_dataset_path
from vastdet.engine.config_files import class_count_keys, value_of

# Children of a model that count other things than detection categories.
NOT_DETECTION = ("backbone", "sem_seg_head", "panoptic_head")


def check_datasets(names: Iterable[str]) -> None:
    """Raise ValueError for an unregistered name, FileNotFoundError for a folder that is missing."""
    for name in names:
        category_space(name)
        metadata = MetadataCatalog.get(name)
        for key in ("json_file", "image_root", "dirname"):
            require_dataset_path(metadata.get(key) or "", name)


def model_class_count(model: nn.Module) -> int | None:
    """The number of detection categories a model was built for; None if it does not say."""
    parts = [model, *(m for n, m in model.named_children() if n not in NOT_DETECTION)]
    counts = [getattr(part, "num_classes", None) for part in parts]
    return next((count for count in counts if isinstance(count, int)), None)


def check_class_counts(cfg: CfgNode, model: nn.Module, names: Iterable[str]) -> None:
    """Raise ValueError when a dataset has another number of categories than the model."""
    expected = model_class_count(model)
    if expected is None:
        return
    for name in names:
        found = len(category_space(name))
        if found == expected:
            continue
        keys = class_count_keys(cfg)
        keys = [key for key in keys if value_of(cfg, key) == expected] or keys
        list_key = "DATASETS.TRAIN" if name in cfg.DATASETS.TRAIN else "DATASETS.TEST"
        raise ValueError(
            f"Dataset {name!r} has {found} categories, but the model is built for {expected}. "
            f"Set {' or '.join(keys)} to {found}, or name another dataset in {list_key}."
        )
