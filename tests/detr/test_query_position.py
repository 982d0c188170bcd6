# SPDX-License-Identifier: Apache-2.0
"""Query positions: what of box, content and layer they follow from."""

import torch
from tests.detr.test_query_source import tokens

from vastdet.detr.query_position import BoxPosition, ScaledBoxPosition


def test_the_content_scales_positions_from_the_second_layer_on() -> None:
    torch.manual_seed(0)
    plain, scaled = BoxPosition(32), ScaledBoxPosition(32)
    scaled.load_state_dict(plain.state_dict(), strict=False)
    memory = tokens()
    boxes, content = torch.rand(2, 5, 4), torch.randn(2, 5, 32)
    position = plain(boxes, content, 1, memory)
    assert torch.equal(scaled(boxes, content, 0, memory), position)
    assert torch.equal(scaled(boxes, content, 1, memory), position * scaled.query_scale(content))
    assert not torch.equal(scaled(boxes, content, 1, memory), position)
