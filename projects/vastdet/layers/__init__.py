# SPDX-License-Identifier: Apache-2.0
"""Tensor operations and blocks; importing it registers the anchor generators with Detectron2."""

from vastdet.layers.anchors import RoundedAnchorGenerator
from vastdet.layers.extension import ExtensionInfo, extension_info
from vastdet.layers.ms_deform_attn import MultiScaleDeformableAttention, ms_deform_attn

__all__ = [
    "ExtensionInfo",
    "MultiScaleDeformableAttention",
    "RoundedAnchorGenerator",
    "extension_info",
    "ms_deform_attn",
]
