# SPDX-License-Identifier: Apache-2.0
"""A convolution with its norm, as one module."""

from torch import nn

from vastdet.layers.fusion import fold


class ConvNorm(nn.Sequential):
    """A convolution without bias and its BatchNorm."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int, stride: int = 1) -> None:
        """`kernel_size` is odd; the map keeps its size at stride 1."""
        conv = nn.Conv2d(in_dim, out_dim, kernel_size, stride, padding=kernel_size // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out_dim))

    def fused(self) -> nn.Conv2d:
        """One convolution that does the same at inference."""
        conv, norm = self
        assert isinstance(conv, nn.Conv2d)
        return fold(conv, norm)
