# SPDX-License-Identifier: Apache-2.0
"""FCOS: a fully convolutional, anchor-free detector."""

from vastdet.models.fcos.config import add_fcos_config
from vastdet.models.fcos.fcos import FCOS

__all__ = ["FCOS", "add_fcos_config"]
