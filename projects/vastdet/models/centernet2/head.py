# SPDX-License-Identifier: Apache-2.0
"""The head of the first stage: one tower shared by all levels, a heatmap and four distances.

Parameters have the names of the authors' code, so that their weights load as they are.

B images, C channels, H x W a feature map.
"""

import math

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn

# Where the distances start, in strides: the authors' centernet_head.py.
INITIAL_DISTANCE = 8.0


class Scale(nn.Module):
    """A learned factor, 1 at the start."""

    def __init__(self) -> None:
        """The parameter has one number, shape (1,)."""
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply `x` of any shape."""
        return x * self.scale


class CenterNetHead(nn.Module):
    """Logits of a class-agnostic heatmap and distances to the sides of a box (section 4)."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.01,
    ) -> None:
        """Build the tower.

        Args:
            in_channels: C, of each level.
            num_levels: levels, each with a scale of its own.
            num_convs: convolutions of the tower.
            norm: their norm, as Detectron2 names it.
            prior_prob: probability of an object at the start, in (0, 1).
        """
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers.append(nn.Conv2d(in_channels, in_channels, 3, padding=1))
            if norm:
                layers.append(get_norm(norm, in_channels))
            layers.append(nn.ReLU())
        self.bbox_tower = nn.Sequential(*layers)
        self.bbox_pred = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels))
        self.agn_hm = nn.Conv2d(in_channels, 1, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.bbox_pred.bias, INITIAL_DISTANCE)
        nn.init.constant_(self.agn_hm.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict on each level.

        Args:
            features: one (B, C, H, W) a level, high resolution first.

        Returns:
            One tensor a level of heatmap logits (B, 1, H, W) and of non-negative distances
            (B, 4, H, W) in strides, order left, top, right, bottom; both float32.
        """
        logits, distances = [], []
        for feature, scale in zip(features, self.scales, strict=True):
            tower = self.bbox_tower(feature)
            logits.append(self.agn_hm(tower).float())
            distances.append(scale(self.bbox_pred(tower).float()).relu())
        return logits, distances
