# SPDX-License-Identifier: Apache-2.0
"""ResNet-vd (He et al. 2019, "Bag of tricks", ResNet-D) as PaddlePaddle and RT-DETR have it.

timm's `resnet50d` and `resnet101d` are the same networks. Its `resnet18d` and `resnet34d` lack one
layer: the shortcut of the first block, which keeps its width and size, has none there, but a 1x1
convolution and a norm in ResNet-vd.
"""

import copy
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from vastdet.backbones.timm_backbone import TimmBackbone


@BACKBONE_REGISTRY.register()
def build_resnet_vd_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the ResNet-D of `MODEL.TIMM` with the first shortcut of ResNet-vd.

    Raises:
        ValueError: `MODEL.TIMM.NAME` is no ResNet, or a value that `TimmBackbone` refuses.
    """
    backbone = TimmBackbone(cfg, input_shape)
    names = dict(backbone.body.named_modules())
    if "layer1.0.conv1" not in names:
        raise ValueError(
            f"MODEL.TIMM.NAME is {cfg.MODEL.TIMM.NAME!r}, which has no stage of residual blocks; "
            "choose a ResNet-D such as resnet50d, or MODEL.BACKBONE.NAME build_timm_backbone"
        )
    add_first_shortcut(names["layer1.0"])
    return backbone


def add_first_shortcut(block: Any) -> None:
    """Give a basic block of timm without a shortcut one that starts as the identity.

    With timm's ImageNet weights the network so starts as timm's. Where the block is frozen, the
    shortcut is; other blocks are left alone.
    """
    if block.downsample is not None:
        return
    width = block.conv1.in_channels
    conv = nn.Conv2d(width, width, 1, bias=False)
    norm = copy.deepcopy(block.bn2)
    with torch.no_grad():
        nn.init.dirac_(conv.weight)
        for name, value in norm.state_dict().items():
            if value.is_floating_point():
                value.fill_(1.0 if name in ("weight", "running_var") else 0.0)
    conv.requires_grad_(block.conv1.weight.requires_grad)
    block.downsample = nn.Sequential(nn.Identity(), conv, norm)
