# SPDX-License-Identifier: Apache-2.0
"""Config keys of `vastdet.engine`."""

from detectron2.config import CfgNode


def add_engine_config(cfg: CfgNode) -> None:
    """Add the keys of `vastdet.engine` to `cfg` in place."""
