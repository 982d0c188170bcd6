# SPDX-License-Identifier: Apache-2.0
"""What makes distances of the regression output of FCOS's head."""

import math

import torch
from torch import Tensor

# Distances beyond this many strides are cut, as Detectron2 cuts box growth (box_regression.py).
MAX_DISTANCE = 1000.0 / 16


def exp_distance(x: Tensor) -> Tensor:
    """exp(x), bounded: the positive distances of the first FCOS."""
    return x.clamp(max=math.log(MAX_DISTANCE)).exp()


DISTANCE_ACTIVATIONS = {"exp": exp_distance, "relu": torch.relu}
