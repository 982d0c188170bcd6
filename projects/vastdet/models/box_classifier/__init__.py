# SPDX-License-Identifier: Apache-2.0
"""A backbone that learns categories from boxes, before a detector learns to find them."""

from vastdet.models.box_classifier.box_classifier import BoxClassifier
from vastdet.models.box_classifier.config import add_box_classifier_config

__all__ = ["BoxClassifier", "add_box_classifier_config"]
