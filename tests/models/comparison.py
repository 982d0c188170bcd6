# SPDX-License-Identifier: Apache-2.0
"""What the comparisons with other code have in common."""

from torch import Tensor


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    difference = float((ours - theirs).detach().abs().max())
    print(f"largest difference {difference:.1e}")  # shown by pytest -s
    return difference
