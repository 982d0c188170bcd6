# SPDX-License-Identifier: Apache-2.0
"""Prediction heads of set-prediction detectors. C channels, K classes."""

import math
from collections.abc import Callable

import torch
from torch import nn

from vastdet.layers.mlp import MLP

# A box that starts from a point has sides of sigmoid(-2) = 0.12 of the image's.
START_SIZE_LOGIT = -2.0


def prior_bias(probability: float) -> float:
    """The bias with which a sigmoid starts at a probability (Lin et al. 2017, section 4.1)."""
    return -math.log((1 - probability) / probability)


def class_head(embed_dim: int, num_classes: int, *, probability: float = 0.01) -> nn.Linear:
    """A linear layer (..., C) to K logits that starts at a class probability."""
    head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(head.bias, prior_bias(probability))
    return head


def box_head(embed_dim: int) -> MLP:
    """Three layers (..., C) to four deltas of a box's logits, which start at 0."""
    head = MLP(embed_dim, embed_dim, 4, 3)
    with torch.no_grad():
        head.layers[-1].weight.zero_()
        head.layers[-1].bias.zero_()
    return head


def start_small(head: nn.Module) -> None:
    """Let a box head add -2 to the logits of sizes: first boxes, from points, are then small."""
    assert isinstance(head, MLP)
    with torch.no_grad():
        head.layers[-1].bias[2:] = START_SIZE_LOGIT


def per_layer(make: Callable[[], nn.Module], num_layers: int, *, shared: bool) -> list[nn.Module]:
    """One module for all layers, or one for each."""
    return [make() for _ in range(1 if shared else num_layers)]
