# SPDX-License-Identifier: Apache-2.0
"""Prova: classes told apart by prototypes made of text and images (Chen et al., AAAI 2025)."""

from vastdet.models.prova.config import add_prova_config
from vastdet.models.prova.prova import Prova

__all__ = ["Prova", "add_prova_config"]
