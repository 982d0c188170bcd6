# SPDX-License-Identifier: Apache-2.0
"""Swin as in CQ-DINO's code, on its names: functions of a state dict and plain tensors.

B images, C channels, H x W a map.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def count(state: State, prefix: str) -> int:
    """How many numbered modules stand below a prefix."""
    return len({n[len(prefix) :].split(".")[0] for n in state if n.startswith(prefix)})


def by_head(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def swin_block(state: State, name: str, x: Tensor, window: int, shift: int, heads: int) -> Tensor:
    """A block on a map (B, H, W, C)."""
    batch, height, width, channels = x.shape
    normed = norm(state, f"{name}.norm1", x)
    normed = F.pad(normed, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = normed.shape[1:3]
    region = torch.zeros(rows, columns)
    if shift:
        normed = normed.roll((-shift, -shift), (1, 2))
        borders = [slice(0, -window), slice(-window, -shift), slice(-shift, None)]
        for i, vertical in enumerate(borders):
            for j, horizontal in enumerate(borders):
                region[vertical, horizontal] = 3 * i + j

    def windows(m: Tensor) -> Tensor:
        m = m.view(-1, rows // window, window, columns // window, window, m.shape[-1])
        return m.transpose(2, 3).reshape(-1, window * window, m.shape[-1])

    qkv = linear(state, f"{name}.attn.w_msa.qkv", windows(normed))
    q, k, v = (by_head(part, heads) for part in qkv.chunk(3, dim=-1))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    table = state[f"{name}.attn.w_msa.relative_position_bias_table"]
    cells = [(i, j) for i in range(window) for j in range(window)]
    for a, (y, x0) in enumerate(cells):
        index = [
            (y - v0 + window - 1) * (2 * window - 1) + x0 - h0 + window - 1 for v0, h0 in cells
        ]
        scores[:, :, a] = scores[:, :, a] + table[index].T
    if shift:
        of_window = windows(region[None, ..., None])[..., 0]
        apart = of_window[:, None, :] != of_window[:, :, None]
        blocked = apart.to(scores.dtype) * -100.0
        scores = scores + blocked.repeat(batch, 1, 1)[:, None]
    seen = linear(state, f"{name}.attn.w_msa.proj", joined(scores.softmax(-1) @ v))
    seen = seen.view(batch, rows // window, columns // window, window, window, channels)
    seen = seen.transpose(2, 3).reshape(batch, rows, columns, channels)
    if shift:
        seen = seen.roll((shift, shift), (1, 2))
    x = x + seen[:, :height, :width]
    hidden = F.gelu(linear(state, f"{name}.ffn.layers.0.0", norm(state, f"{name}.norm2", x)))
    return x + linear(state, f"{name}.ffn.layers.1", hidden)


def swin(state: State, images: Tensor, window: int, heads: Sequence[int]) -> list[Tensor]:
    """The maps (B, C, H, W) of the stages that have an output norm."""
    name = "backbone.patch_embed.projection"
    images = F.pad(images, (0, -images.shape[-1] % 4, 0, -images.shape[-2] % 4))
    x = F.conv2d(images, state[f"{name}.weight"], state[f"{name}.bias"], stride=4)
    x = norm(state, "backbone.patch_embed.norm", x.permute(0, 2, 3, 1))
    maps = []
    for i in range(count(state, "backbone.stages.")):
        stage = f"backbone.stages.{i}"
        for j in range(count(state, f"{stage}.blocks.")):
            shift = window // 2 if j % 2 else 0
            x = swin_block(state, f"{stage}.blocks.{j}", x, window, shift, heads[i])
        if f"backbone.norm{i}.weight" in state:
            maps.append(norm(state, f"backbone.norm{i}", x).permute(0, 3, 1, 2))
        if f"{stage}.downsample.norm.weight" in state:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            grids = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
            x = norm(state, f"{stage}.downsample.norm", torch.cat(grids, dim=-1))
            x = F.linear(x, state[f"{stage}.downsample.reduction.weight"])
    return maps
