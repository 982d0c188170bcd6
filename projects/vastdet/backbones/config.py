# SPDX-License-Identifier: Apache-2.0
"""Config keys of `vastdet.backbones`."""

from detectron2.config import CfgNode


def add_backbone_config(cfg: CfgNode) -> None:
    """Add the keys of `vastdet.backbones` to `cfg` in place."""
