# SPDX-License-Identifier: Apache-2.0
"""The data check: what is wrong with a dataset, and a cleaned copy of it."""

from vastdet.data.check.dataset import CheckedDataset, check_dataset
from vastdet.data.check.report import Finding, Kind, Report
from vastdet.data.check.source import from_registered

__all__ = ["CheckedDataset", "Finding", "Kind", "Report", "check_dataset", "from_registered"]
