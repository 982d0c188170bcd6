# SPDX-License-Identifier: Apache-2.0
"""A ResNet whose last stage keeps the resolution of the one before (DC5)."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone
from detectron2.modeling.backbone.resnet import ResNet


@BACKBONE_REGISTRY.register()
def build_resnet_dc5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet with res5 dilated as in torchvision and DETR (Carion et al. 2020, section 4).

    Its first block loses the stride and is not dilated, the further blocks are. Detectron2 dilates
    the first one too, so that weights of one do not give the features of the other.

    Raises:
        ValueError: `MODEL.RESNETS.RES5_DILATION` is not 2.
    """
    if cfg.MODEL.RESNETS.RES5_DILATION != 2:
        raise ValueError(
            f"MODEL.RESNETS.RES5_DILATION is {cfg.MODEL.RESNETS.RES5_DILATION}; expected 2, or "
            "MODEL.BACKBONE.NAME build_resnet_backbone for a ResNet without dilation"
        )
    resnet = build_resnet_backbone(cfg, input_shape)
    first = resnet.res5[0].conv2
    first.dilation, first.padding = (1, 1), (1, 1)
    return resnet
