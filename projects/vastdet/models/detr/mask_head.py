# SPDX-License-Identifier: Apache-2.0
"""Masks of queries: where a query looks, refined with the backbone's maps.

Carion et al. 2020, section 4.2.

B images, Q queries, M chosen queries, H heads, C channels, h x w cells of the encoded map.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

NUM_GROUPS = 8


class QueryAttentionMaps(nn.Module):
    """How much each query looks at each cell, by head; nothing is gathered there.

    The weights of a query sum to 1 over cells and heads together, as in the authors' code.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        """`embed_dim` is C, a multiple of `num_heads`."""
        super().__init__()
        self.num_heads = num_heads
        self.query_proj = nn.Linear(embed_dim, embed_dim)
        self.key_proj = nn.Linear(embed_dim, embed_dim)
        for layer in (self.query_proj, self.key_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, content: Tensor, cells: Tensor, padding_mask: Tensor) -> Tensor:
        """Weights of each cell.

        Args:
            content: (B, Q, C).
            cells: (B, h * w, C).
            padding_mask: (B, h, w) bool, True at padding.

        Returns:
            (B, Q, H, h, w), 0 at padding.
        """
        query = self.query_proj(content).unflatten(-1, (self.num_heads, -1))
        key = self.key_proj(cells).unflatten(-1, (self.num_heads, -1))
        logits = torch.einsum("bqhc,bshc->bqhs", query * key.shape[-1] ** -0.5, key)
        blocked = padding_mask.flatten(1)[:, None, None]
        weights = logits.masked_fill(blocked, float("-inf")).flatten(2).softmax(dim=-1)
        return weights.view(*logits.shape[:3], *padding_mask.shape[1:])


class NormedConv(nn.Module):
    """A 3x3 convolution, GroupNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Eight groups, or as many as divide the channels."""
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(math.gcd(NUM_GROUPS, out_channels), out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H, W) to the same size."""
        return self.norm(self.conv(x)).relu()


class MaskHead(nn.Module):
    """Joins the projected map with a query's attention, and adds finer maps of the backbone."""

    def __init__(
        self,
        input_shapes: Mapping[str, ShapeSpec],
        in_features: Sequence[str],
        *,
        embed_dim: int,
        num_heads: int,
    ) -> None:
        """Build the head.

        Args:
            input_shapes: what the backbone returns.
            in_features: the three maps to add, low resolution first.
            embed_dim: C, a multiple of 16.
            num_heads: H of the attention maps.

        Raises:
            ValueError: there are not three maps, or the backbone does not return one.
        """
        super().__init__()
        unknown = [f for f in in_features if f not in input_shapes]
        if unknown or len(in_features) != 3:
            raise ValueError(
                f"MASK_FEATURES is {list(in_features)}, and the backbone returns "
                f"{list(input_shapes)}; name three of these, low resolution first"
            )
        self.in_features = list(in_features)
        width = embed_dim + num_heads
        widths = [width, width, *(embed_dim // n for n in (2, 4, 8, 16))]
        self.convs = nn.ModuleList(NormedConv(n, m) for n, m in pairwise(widths))
        self.adapters = nn.ModuleList(
            nn.Conv2d(input_shapes[f].channels, n, 1)
            for f, n in zip(in_features, widths[2:5], strict=True)
        )
        self.output = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(
        self,
        projected: Tensor,
        attention: Tensor,
        features: Mapping[str, Tensor],
        image: Tensor,
    ) -> Tensor:
        """Predict the masks of M queries.

        Args:
            projected: (B, C, h, w), the map before the encoder.
            attention: (M, H, h, w).
            features: the backbone's maps by name, for B images.
            image: (M,), the image of each query.

        Returns:
            Mask logits (M, H_f, W_f), of the size of the finest map.
        """
        x = torch.cat([projected[image], attention], dim=1)
        x = self.convs[1](self.convs[0](x))
        for name, adapter, conv in zip(
            self.in_features, self.adapters, self.convs[2:], strict=True
        ):
            finer = adapter(features[name])[image]
            x = conv(finer + F.interpolate(x, size=finer.shape[-2:], mode="nearest"))
        return self.output(x)[:, 0]
