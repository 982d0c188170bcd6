# SPDX-License-Identifier: Apache-2.0
"""Tensor operations and blocks; importing it registers the anchor generators with Detectron2."""

from vastdet.layers.anchors import RoundedAnchorGenerator

__all__ = ["RoundedAnchorGenerator"]
