# SPDX-License-Identifier: Apache-2.0
"""Config keys of Prova."""

from detectron2.config import CfgNode

from vastdet.detr.config_keys import add_dino_keys


def add_prova_config(cfg: CfgNode) -> None:
    """Add `MODEL.PROVA`; the defaults are those of the authors' code (Chen et al., AAAI 2025)."""
    node = cfg.MODEL.PROVA = CfgNode()
    add_dino_keys(node)
    # What the prototypes of the categories are before training: a .safetensors of
    # tools/compute_category_embeddings.py and one of tools/compute_image_prototypes.py, or
    # "random:D", D random numbers a category. Neither may stay empty.
    node.TEXTUAL_PROTOTYPES = ""
    node.VISUAL_PROTOTYPES = ""
    # Whether training changes them.
    node.LEARN_PROTOTYPES = False
    # Cosines are multiplied by it, which is not learned: the inverse temperature of CLIP's models.
    node.LOGIT_SCALE = 100.0
    # Federated loss: as many classes, those of the batch and others in proportion to a power of the
    # number of training images, enter the class losses but that of the proposals; 0 for all. Names
    # and power are those of Detectron2's MODEL.ROI_BOX_HEAD.
    node.LOSS.FED_LOSS_NUM_CLASSES = 0
    node.LOSS.FED_LOSS_FREQ_WEIGHT_POWER = 0.5
