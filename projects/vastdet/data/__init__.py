# SPDX-License-Identifier: Apache-2.0
"""Datasets, mappers, loaders and the generated dataset."""

from vastdet.data import builtin, generated  # noqa: F401  (register their datasets)
from vastdet.data.errors import BrokenRecordError
from vastdet.data.image_io import read_image
from vastdet.data.loader import build_test_loader, build_train_loader
from vastdet.data.mapper import DetectionMapper
from vastdet.data.proposals import load_proposals, read_proposals, save_proposals
from vastdet.data.register import category_space, register_coco, register_v3det

__all__ = [
    "BrokenRecordError",
    "DetectionMapper",
    "build_test_loader",
    "build_train_loader",
    "category_space",
    "load_proposals",
    "read_image",
    "read_proposals",
    "register_coco",
    "register_v3det",
    "save_proposals",
]
