# SPDX-License-Identifier: Apache-2.0
"""Config keys of DINO."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import add_dino_keys


def add_dino_config(cfg: CfgNode) -> None:
    """Add `MODEL.DINO`; the defaults are the 4-scale model (Zhang et al., ICLR 2023)."""
    node = cfg.MODEL.DINO = CfgNode()
    add_dino_keys(node)
