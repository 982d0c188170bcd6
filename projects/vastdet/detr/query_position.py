# SPDX-License-Identifier: Apache-2.0
"""What tells a query where it is: the encoding of its reference box.

B images, Q queries, C channels.
"""

import math

from torch import Tensor, nn

from vastdet.detr.tokens import Tokens
from vastdet.layers.mlp import MLP, xavier_mlp
from vastdet.layers.positions import sine_features


def box_sine_features(boxes: Tensor, num_features: int) -> Tensor:
    """Sine features of y, x, w, h (in this order) of boxes or points.

    Args:
        boxes: (..., 4) CXCYWH or (..., 2) XY, in [0, 1].
        num_features: of each coordinate.

    Returns:
        (..., 4 or 2 times num_features), float32.
    """
    order = [1, 0, 2, 3][: boxes.shape[-1]]
    return sine_features(boxes[..., order] * (2 * math.pi), num_features, 10000.0)


class AnchorPosition(nn.Module):
    """An MLP over the sine features of the reference box (Liu et al. 2022, DAB-DETR, 4.2)."""

    def __init__(self, embed_dim: int) -> None:
        """`embed_dim` is C, a multiple of 4."""
        super().__init__()
        self.num_features = embed_dim // 2
        self.ref_point_head = MLP(2 * embed_dim, embed_dim, embed_dim, 2)

    def forward(self, boxes: Tensor, content: Tensor, layer: int, memory: Tokens) -> Tensor:
        """Reference boxes (B, Q, 4) to positions (B, Q, C); all else does not matter."""
        features = box_sine_features(boxes, self.num_features)
        return self.ref_point_head(features.to(content.dtype))


class BoxPosition(AnchorPosition):
    """Reads the box as a share of the finest level with its padding, as in DINO's code."""

    def forward(self, boxes: Tensor, content: Tensor, layer: int, memory: Tokens) -> Tensor:
        """Reference boxes (B, Q, 4) to positions (B, Q, C); content and layer do not matter."""
        ratios = memory.valid_ratios[:, :1].repeat(1, 1, 2)
        return super().forward(boxes * ratios, content, layer, memory)


class BoxMLP(nn.Module):
    """An MLP over the four numbers of the reference box (Zhao et al. 2024, RT-DETR's code)."""

    def __init__(self, embed_dim: int) -> None:
        """`embed_dim` is C; the hidden layer is twice as wide."""
        super().__init__()
        self.mlp = xavier_mlp(4, 2 * embed_dim, embed_dim, 2)

    def forward(self, boxes: Tensor, content: Tensor, layer: int, memory: Tokens) -> Tensor:
        """Reference boxes (B, Q, 4) to positions (B, Q, C); all else does not matter."""
        return self.mlp(boxes.to(content.dtype))


class ScaledBoxPosition(BoxPosition):
    """As `BoxPosition`; from the second layer on, an MLP over the content scales it by channel.

    Liu et al. 2022 (DAB-DETR), section 4.2, as in the authors' deformable models.
    """

    def __init__(self, embed_dim: int) -> None:
        """`embed_dim` is C, a multiple of 4."""
        super().__init__(embed_dim)
        self.query_scale = MLP(embed_dim, embed_dim, embed_dim, 2)

    def forward(self, boxes: Tensor, content: Tensor, layer: int, memory: Tokens) -> Tensor:
        """Reference boxes (B, Q, 4) and content (B, Q, C) to positions (B, Q, C)."""
        position = super().forward(boxes, content, layer, memory)
        return position if layer == 0 else position * self.query_scale(content)
