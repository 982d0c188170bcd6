# SPDX-License-Identifier: Apache-2.0
"""Config keys of `vastdet.data`."""

from detectron2.config import CfgNode


def add_data_config(cfg: CfgNode) -> None:
    """Add the keys of `vastdet.data` to `cfg` in place."""
