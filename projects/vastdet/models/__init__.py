# SPDX-License-Identifier: Apache-2.0
"""Architectures: importing this package registers each with Detectron2's META_ARCH_REGISTRY."""

from collections.abc import Callable

from detectron2.config import CfgNode

from vastdet.models.atss import add_atss_config
from vastdet.models.box_classifier import add_box_classifier_config
from vastdet.models.centernet2 import add_centernet2_config
from vastdet.models.conditional_detr import add_conditional_detr_config
from vastdet.models.cq_dino import add_cq_dino_config
from vastdet.models.dab_deformable_detr import add_dab_deformable_detr_config
from vastdet.models.dab_detr import add_dab_detr_config
from vastdet.models.deformable_detr import add_deformable_detr_config
from vastdet.models.deta import add_deta_config
from vastdet.models.detr import add_detr_config
from vastdet.models.dino import add_dino_config
from vastdet.models.dn_detr import add_dn_detr_config
from vastdet.models.faster_rcnn import add_faster_rcnn_config
from vastdet.models.fcos import add_fcos_config
from vastdet.models.h_deformable_detr import add_h_deformable_detr_config
from vastdet.models.prova import add_prova_config
from vastdet.models.rank_detr import add_rank_detr_config
from vastdet.models.relation_detr import add_relation_detr_config
from vastdet.models.retinanet import ClippedRetinaNet  # noqa: F401  (registers it)
from vastdet.models.rt_detr import add_rt_detr_config

# One entry an architecture: the function of its config.py that adds its node.
ARCHITECTURE_CONFIGS: tuple[Callable[[CfgNode], None], ...] = (
    add_faster_rcnn_config,
    add_fcos_config,
    add_atss_config,
    add_dino_config,
    add_prova_config,
    add_relation_detr_config,
    add_deta_config,
    add_detr_config,
    add_deformable_detr_config,
    add_rt_detr_config,
    add_conditional_detr_config,
    add_dab_detr_config,
    add_dn_detr_config,
    add_h_deformable_detr_config,
    add_rank_detr_config,
    add_dab_deformable_detr_config,
    add_cq_dino_config,
    add_centernet2_config,
    add_box_classifier_config,
)
