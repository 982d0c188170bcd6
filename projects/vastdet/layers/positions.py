# SPDX-License-Identifier: Apache-2.0
"""Sine features of coordinates (Vaswani et al. 2017), for feature maps and for boxes.

B images, H x W cells, C channels, D features of a coordinate.
"""

import math

import torch
from torch import Tensor, nn

from vastdet.layers.precision import at_least_float32


def sine_features(coordinates: Tensor, num_features: int, temperature: float) -> Tensor:
    """Features sin, cos, sin, cos, ... of each coordinate, from high to low frequency.

    Args:
        coordinates: (..., n), in radians of the highest frequency.
        num_features: D, even; frequency k is temperature^(-2k/D).
        temperature: ratio of the highest to (nearly) the lowest frequency.

    Returns:
        (..., n * D), coordinate by coordinate, in float32, or float64 for such coordinates.
    """
    coordinates = at_least_float32(coordinates)
    half = torch.arange(num_features // 2, dtype=coordinates.dtype, device=coordinates.device)
    frequencies = temperature ** (-2 * half / num_features)
    angles = coordinates.unsqueeze(-1) * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


class SinePositionEncoding(nn.Module):
    """Position encoding of the cells of a padded map (Carion et al. 2020, appendix A.4).

    A cell's coordinate is its place among the cells that are not padding, brought to [0, 2 pi].
    """

    def __init__(self, embed_dim: int, *, temperature: float = 10000.0, offset: float = 0.0):
        """Take constants.

        Args:
            embed_dim: C, a multiple of 4; half of it encodes y, half x.
            temperature: 10000 in DETR and Deformable DETR, 20 in DINO.
            offset: added to the count of cells; -0.5 (the cell's centre) in Deformable DETR.
        """
        super().__init__()
        if embed_dim % 4:
            raise ValueError(f"embed_dim must be a multiple of 4, got {embed_dim}")
        self.num_features = embed_dim // 2
        self.temperature = temperature
        self.offset = offset

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Encode the cells of masks (B, H, W), True at padding, as (B, H, W, C)."""
        valid = ~padding_mask
        y = self._coordinate(valid.cumsum(1, dtype=torch.float32), dim=1)
        x = self._coordinate(valid.cumsum(2, dtype=torch.float32), dim=2)
        return sine_features(torch.stack([y, x], dim=-1), self.num_features, self.temperature)

    def _coordinate(self, count: Tensor, dim: int) -> Tensor:
        last = count.narrow(dim, count.shape[dim] - 1, 1)
        return (count + self.offset) / (last + 1e-6) * (2 * math.pi)
