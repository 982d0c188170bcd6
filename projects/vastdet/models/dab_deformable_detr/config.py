# SPDX-License-Identifier: Apache-2.0
"""Config keys of DAB-Deformable-DETR and DN-Deformable-DETR."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import (
    add_deformable_keys,
    add_dn_denoising_keys,
    add_focal_keys,
    add_loss_and_matcher_keys,
)


def add_dab_deformable_detr_config(cfg: CfgNode) -> None:
    """Add `MODEL.DAB_DEFORMABLE_DETR`; the defaults are the model without denoising.

    Liu et al., ICLR 2022 (DAB-DETR); Li et al., CVPR 2022 (DN-DETR).
    """
    node = cfg.MODEL.DAB_DEFORMABLE_DETR = CfgNode()
    add_deformable_keys(node)
    node.NUM_QUERIES = 300

    add_dn_denoising_keys(node)
    # 5 in DN-Deformable-DETR; 0 turns denoising off.
    node.DENOISING.NUM_GROUPS = 0

    add_loss_and_matcher_keys(node)
    add_focal_keys(node.LOSS)
