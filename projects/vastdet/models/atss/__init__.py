# SPDX-License-Identifier: Apache-2.0
"""ATSS: training samples chosen by the statistics of each object."""

from vastdet.models.atss.atss import ATSS
from vastdet.models.atss.config import add_atss_config

__all__ = ["ATSS", "add_atss_config"]
