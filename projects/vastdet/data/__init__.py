# SPDX-License-Identifier: Apache-2.0
"""Datasets, mappers, loaders and the generated dataset."""

from vastdet.data import generated  # noqa: F401  (registers its datasets)

from vastdet.data.errors import BrokenRecordError
from vastdet.data.image_io import read_image
from vastdet.data.loader import build_test_loader, build_train_loader
from vastdet.data.mapper import DetectionMapper

__all__ = [
    "BrokenRecordError",
    "DetectionMapper",
    "build_test_loader",
    "build_train_loader",
    "read_image",
]
