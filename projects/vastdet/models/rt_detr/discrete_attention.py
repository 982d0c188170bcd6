# SPDX-License-Identifier: Apache-2.0
"""Deformable attention that reads one cell where others interpolate four (Lv et al. 2024, 3.2)."""

from typing import Any

import torch
from torch import Tensor

from vastdet.detr.decoder import DeformableCrossAttention


class DiscreteCrossAttention(DeformableCrossAttention):
    """Queries read the cells that their sampling locations fall to.

    In cells, a location x reads cell floor(x + 1/2), within the level: half a cell further than the
    cell that holds it, as in the authors' code. Offsets get no gradient and are frozen.
    """

    def __init__(self, embed_dim: int = 256, **options: Any) -> None:
        """Arguments as in `MultiScaleDeformableAttention`."""
        super().__init__(embed_dim, **options)
        self.sampling_offsets.requires_grad_(False)

    @torch.no_grad()
    def locate(self, query: Tensor, reference_points: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Centres of cells (B, Q, H, T, 2), where interpolation reads one cell alone."""
        locations = super().locate(query, reference_points, spatial_shapes)
        sizes = spatial_shapes.flip(-1)[self._level_of_sample].to(locations.dtype)
        cells = (locations * sizes + 0.5).floor().clamp(min=0)
        return (torch.minimum(cells, sizes - 1) + 0.5) / sizes
