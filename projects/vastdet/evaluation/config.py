# SPDX-License-Identifier: Apache-2.0
"""Config keys of `vastdet.evaluation`."""

from detectron2.config import CfgNode


def add_evaluation_config(cfg: CfgNode) -> None:
    """Add the keys of `vastdet.evaluation` to `cfg` in place."""
