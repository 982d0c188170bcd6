# SPDX-License-Identifier: Apache-2.0
"""Figures that all processes of a training run share."""

import torch.distributed
from detectron2.utils.comm import get_world_size
from torch import Tensor


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without gradient; itself when there is one process.

    Every process must call it, with the same shape.
    """
    value = value.detach()
    world_size = get_world_size()
    if world_size == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / world_size
