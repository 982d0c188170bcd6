# SPDX-License-Identifier: Apache-2.0
"""The hybrid encoder of RT-DETR: AIFI and CCFM (Zhao et al. 2024, section 4.2).

B images, L levels of H x W cells, S = H * W tokens, C channels. Padding masks (B, H, W) are True at
padding. Cells of padding are zero wherever a 3x3 kernel reads, so that padding changes no result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.detr.tokens import Tokens, flatten_maps
from vastdet.layers.attention import MultiheadAttention
from vastdet.layers.conv_norm import ConvNorm
from vastdet.layers.mlp import FeedForward


def cell_encoding(size: tuple[int, int], embed_dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of row and column, counted in cells, (S, C) in float32.

    Args:
        size: (H, W).
        embed_dim: C, a multiple of 4; a quarter each for sin y, cos y, sin x, cos x.
        device: where to build it.
    """
    quarter = embed_dim // 4
    exponents = torch.arange(quarter, device=device, dtype=torch.float32) / quarter
    y, x = (
        torch.arange(n, device=device, dtype=torch.float32)[:, None] * 10000.0**-exponents
        for n in size
    )
    rows = torch.cat([y.sin(), y.cos()], dim=-1)[:, None].expand(*size, -1)
    columns = torch.cat([x.sin(), x.cos()], dim=-1).expand(*size, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class AIFILayer(nn.Module):
    """Self-attention among the cells of one level, and a feed-forward block with GELU."""

    def __init__(self, embed_dim: int, num_heads: int, feedforward_dim: int) -> None:
        """`embed_dim` is C, a multiple of 4 and of `num_heads`."""
        super().__init__()
        if embed_dim % 4:
            raise ValueError(
                f"embed_dim is {embed_dim}, expected a multiple of 4; a quarter of the channels "
                "encodes each sine and cosine of a cell's place, so choose such a width"
            )
        self.self_attn = MultiheadAttention(embed_dim, num_heads)
        self.self_attn_norm = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, feedforward_dim, activation=nn.GELU)
        self.ffn_norm = nn.LayerNorm(embed_dim)

    def forward(self, level: Tensor, padding_mask: Tensor) -> Tensor:
        """A map (B, C, H, W) and its padding mask to a map of the same shape."""
        height, width = level.shape[-2:]
        values = level.flatten(2).transpose(1, 2)
        encoding = cell_encoding((height, width), level.shape[1], level.device)
        query = values + encoding.to(values.dtype)
        blocked = padding_mask.flatten(1)[:, None, None]
        values = self.self_attn_norm(values + self.self_attn(query, query, values, blocked=blocked))
        values = self.ffn_norm(values + self.ffn(values))
        return values.transpose(1, 2).unflatten(-1, (height, width))


class RepBlock(nn.Module):
    """A 3x3 and a 1x1 convolution side by side (RepVGG, Ding et al. 2021), then SiLU."""

    def __init__(self, dim: int) -> None:
        """`dim` channels in and out."""
        super().__init__()
        self.conv3 = ConvNorm(dim, dim, 3)
        self.conv1 = ConvNorm(dim, dim, 1)

    def forward(self, level: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return F.silu(self.conv3(level) + self.conv1(level))

    def fused(self) -> nn.Module:
        """One 3x3 convolution with its SiLU, which does the same at inference."""
        conv, point = self.conv3.fused(), self.conv1.fused()
        assert conv.bias is not None
        assert point.bias is not None
        conv.weight += F.pad(point.weight, (1, 1, 1, 1))
        conv.bias += point.bias
        return nn.Sequential(conv, nn.SiLU())


class FusionBlock(nn.Module):
    """Fuses two maps of one size: three RepVGG blocks beside a 1x1 convolution (Fig. 4)."""

    def __init__(self, embed_dim: int, expansion: float = 1.0) -> None:
        """`expansion` is the inner width as a share of `embed_dim`: 1.0 in R50, 0.5 in R18."""
        super().__init__()
        inner = int(embed_dim * expansion)
        self.deep = ConvNorm(2 * embed_dim, inner, 1)
        self.short = ConvNorm(2 * embed_dim, inner, 1)
        self.blocks = nn.ModuleList(RepBlock(inner) for _ in range(3))
        self.out = ConvNorm(inner, embed_dim, 1) if inner != embed_dim else None

    def forward(self, first: Tensor, second: Tensor, padding_mask: Tensor) -> Tensor:
        """Two maps (B, C, H, W) to one, zero at padding."""
        empty = padding_mask[:, None]
        both = torch.cat([first, second], dim=1)
        deep = F.silu(self.deep(both))
        for block in self.blocks:
            deep = block(deep.masked_fill(empty, 0.0))
        fused = deep + F.silu(self.short(both))
        if self.out is not None:
            fused = F.silu(self.out(fused))
        return fused.masked_fill(empty, 0.0)


class HybridEncoder(nn.Module):
    """Attention within the coarsest level, then a top-down and a bottom-up path between levels."""

    def __init__(
        self,
        *,
        embed_dim: int = 256,
        num_levels: int = 3,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        num_layers: int = 1,
        expansion: float = 1.0,
    ) -> None:
        """`num_layers` of AIFI; `expansion` as in `FusionBlock`; the defaults are R50's."""
        super().__init__()
        self.embed_dim = embed_dim
        self.num_levels = num_levels
        paths = range(num_levels - 1)
        self.aifi = nn.ModuleList(
            AIFILayer(embed_dim, num_heads, feedforward_dim) for _ in range(num_layers)
        )
        self.laterals = nn.ModuleList(ConvNorm(embed_dim, embed_dim, 1) for _ in paths)
        self.top_down = nn.ModuleList(FusionBlock(embed_dim, expansion) for _ in paths)
        self.downsamples = nn.ModuleList(ConvNorm(embed_dim, embed_dim, 3, 2) for _ in paths)
        self.bottom_up = nn.ModuleList(FusionBlock(embed_dim, expansion) for _ in paths)

    def forward(self, maps: Sequence[Tensor], padding_masks: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W), high resolution first, and masks to maps of the same shapes."""
        coarse, coarse_mask = maps[-1], padding_masks[-1]
        for layer in self.aifi:
            coarse = layer(coarse, coarse_mask)
        lower = list(zip(maps[:-1], padding_masks[:-1], strict=True))[::-1]
        kept = []
        for (level, mask), lateral, fuse in zip(lower, self.laterals, self.top_down, strict=True):
            coarse = F.silu(lateral(coarse))
            kept.append(coarse)
            coarse = fuse(F.interpolate(coarse, size=level.shape[-2:]), level, mask)
        results = [coarse]
        steps = zip(kept[::-1], padding_masks[1:], self.downsamples, self.bottom_up, strict=True)
        for level, mask, downsample, fuse in steps:
            results.append(fuse(F.silu(downsample(results[-1])), level, mask))
        return results


class HybridTokens(nn.Module):
    """Encodes the maps, brings them to the width of the decoder and makes their cells tokens.

    The tokens have no positions (their channels are none): no part of the decoder asks for them.
    """

    def __init__(self, encoder: HybridEncoder, embed_dim: int) -> None:
        """`embed_dim` is the width of the decoder."""
        super().__init__()
        self.encoder = encoder
        self.projections = nn.ModuleList(
            ConvNorm(encoder.embed_dim, embed_dim, 1) for _ in range(encoder.num_levels)
        )

    def forward(self, levels: Sequence[Tensor], padding_masks: Sequence[Tensor]) -> Tokens:
        """Maps (B, C, H, W), high resolution first, and their masks to tokens."""
        maps = self.encoder(levels, padding_masks)
        maps = [projection(m) for projection, m in zip(self.projections, maps, strict=True)]
        nowhere = [mask.new_zeros(*mask.shape, 0, dtype=maps[0].dtype) for mask in padding_masks]
        return flatten_maps(maps, padding_masks, nowhere)
