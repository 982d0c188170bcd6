# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from vastdet.layers.positions import SinePositionEncoding, sine_features


def test_features_by_the_formula() -> None:
    features = sine_features(torch.tensor([[0.3, 1.7]]), 6, 20.0)
    expected = [
        f(x * 20.0 ** (-2 * k / 6))
        for x in (0.3, 1.7)
        for k in range(3)
        for f in (math.sin, math.cos)
    ]
    torch.testing.assert_close(features, torch.tensor([expected]))


def padded_mask() -> torch.Tensor:
    mask = torch.ones(2, 5, 6, dtype=torch.bool)
    mask[0] = False
    mask[1, :3, :4] = False
    return mask


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_a_cell_counts_from_the_first_that_is_no_padding(offset: float) -> None:
    encode = SinePositionEncoding(8, temperature=20.0, offset=offset)
    encoded = encode(padded_mask())
    assert encoded.shape == (2, 5, 6, 8)
    # Row 1, column 2 of the smaller image: the second of three rows, the third of four columns.
    y = (2 + offset) / (3 + 1e-6) * 2 * math.pi
    x = (3 + offset) / (4 + 1e-6) * 2 * math.pi
    expected = sine_features(torch.tensor([y, x]), 4, 20.0)
    torch.testing.assert_close(encoded[1, 1, 2], expected)


def test_padding_changes_nothing() -> None:
    encode = SinePositionEncoding(16)
    alone = encode(torch.zeros(1, 3, 4, dtype=torch.bool))
    torch.testing.assert_close(encode(padded_mask())[1:, :3, :4], alone)


def test_width_must_be_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        SinePositionEncoding(6)
