# SPDX-License-Identifier: Apache-2.0
"""The position relation of boxes, as a bias of self-attention (Hou et al. 2024, section 4).

B images, N source boxes, M target boxes, H heads, D features of a number, F = D / 2 frequencies.
Boxes are CXCYWH as shares of the image.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vastdet.layers.precision import at_least_float32

# Keeps divisors above zero, as in the authors' code.
SIZE_EPS = 1e-5


class PositionRelation(nn.Module):
    """Sine features of four numbers of each pair of boxes, through a linear layer and ReLU.

    Of source i and target j these are log(|x_i - x_j| / w_i + 1), the same of y and h,
    log(w_i / w_j) and log(h_i / h_j). Boxes get no gradient.

    The (B, 4 D, N, M) features are never held. Those of x and y are summed up one number at a time,
    and made again for the gradient. Those of w and h are sines of differences, so products of the
    sines of single boxes give their sums.
    """

    def __init__(
        self,
        num_heads: int,
        *,
        num_features: int = 16,
        temperature: float = 10000.0,
        scale: float = 100.0,
    ) -> None:
        """Take constants.

        Args:
            num_heads: H.
            num_features: D, even.
            temperature: ratio of the highest to (nearly) the lowest frequency.
            scale: the highest frequency, in radians for each unit of the logs.
        """
        super().__init__()
        self.projection = nn.Conv2d(4 * num_features, num_heads, 1)
        exponents = torch.arange(num_features // 2, dtype=torch.float32) * (2 / num_features)
        self.register_buffer("exponents", exponents, False)
        self.temperature = temperature
        self.scale = scale

    def forward(self, sources: Tensor, targets: Tensor) -> Tensor:
        """Boxes (B, N, 4) and (B, M, 4) to (B, H, N, M), 0 or more."""
        sources, targets = at_least_float32(sources.detach()), at_least_float32(targets.detach())
        # Of each number sine and cosine take turns, from high to low frequency.
        weight = self.projection.weight.flatten(1).unflatten(1, (4, -1, 2))
        assert self.projection.bias is not None
        total = self.projection.bias[:, None, None] + self.size_part(
            weight[:, 2:], sources, targets
        )
        for axis in range(2):
            arguments = (weight[:, axis], sources, targets, axis)
            if torch.is_grad_enabled():
                part = checkpoint(
                    self.center_part, *arguments, use_reentrant=False, preserve_rng_state=False
                )
            else:
                part = self.center_part(*arguments)
            total = total + part
        return total.relu()

    def center_part(self, weight: Tensor, sources: Tensor, targets: Tensor, axis: int) -> Tensor:
        """What the x (axis 0) or y (axis 1) of all pairs adds, (B, H, N, M).

        `weight` is (H, F, 2), of sine and cosine.
        """
        distances = (sources[:, :, None, axis] - targets[:, None, :, axis]).abs()
        logs = torch.log(distances / (sources[:, :, None, 2 + axis] + SIZE_EPS) + 1)
        periods = self.temperature ** self.exponents.to(logs.dtype)
        angles = (logs * self.scale).flatten(1)[:, None] / periods[:, None]
        sine, cosine = weight.unbind(-1)
        part = sine @ angles.sin().to(sine.dtype) + cosine @ angles.cos().to(sine.dtype)
        return part.unflatten(-1, logs.shape[1:])

    def size_part(self, weight: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
        """What the w and h of all pairs add, (B, H, N, M); `weight` is (H, 2, F, 2).

        s sin(a - b) + c cos(a - b) = (s sin a + c cos a) cos b + (c sin a - s cos a) sin b.
        """
        sine, cosine = weight.flatten(1, 2)[:, None].unbind(-1)
        sin_a, cos_a = (x[:, None].to(sine.dtype) for x in self.size_waves(sources))
        sin_b, cos_b = (x[:, None].to(sine.dtype) for x in self.size_waves(targets))
        left = torch.cat([sine * sin_a + cosine * cos_a, cosine * sin_a - sine * cos_a], dim=-1)
        return left @ torch.cat([cos_b, sin_b], dim=-1).transpose(-1, -2)

    def size_waves(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Sines and cosines of the logs of w and h, each (B, N, 2 F).

        In float64: angles reach a thousand, and differences of their sines must be exact.
        """
        logs = torch.log(boxes[..., 2:].double() + SIZE_EPS)
        periods = self.temperature ** self.exponents.double()
        angles = (logs[..., None] * self.scale / periods).flatten(-2)
        return angles.sin(), angles.cos()
