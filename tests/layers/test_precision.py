# SPDX-License-Identifier: Apache-2.0
"""What half precision would spoil is in float32, and float64 stays."""

import pytest
import torch

from vastdet.layers.precision import at_least_float32


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bool, torch.float32),
        (torch.int64, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision(given: torch.dtype, expected: torch.dtype) -> None:
    values = torch.tensor([0, 1]).to(given)
    found = at_least_float32(values)
    assert found.dtype == expected
    assert found.tolist() == [0, 1]


def test_nothing_is_copied() -> None:
    values = torch.ones(2)
    assert at_least_float32(values) is values
