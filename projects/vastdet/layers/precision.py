# SPDX-License-Identifier: Apache-2.0
"""The least precision of what half precision would spoil."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Values in float32; those in float64 as they are, so that a model may be computed in it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
