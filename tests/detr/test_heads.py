# SPDX-License-Identifier: Apache-2.0
"""What prediction heads say before any training."""

import pytest
import torch

from vastdet.detr.heads import box_head, class_head, start_small


def test_classes_start_at_their_probability() -> None:
    head = class_head(8, 3, probability=0.2)
    assert head(torch.zeros(8)).sigmoid().tolist() == pytest.approx([0.2] * 3)


def test_boxes_stay_or_start_small() -> None:
    head = box_head(8)
    content = torch.randn(4, 8)
    assert not head(content).any()
    start_small(head)
    assert torch.equal(head(content), torch.tensor([0.0, 0.0, -2.0, -2.0]).expand(4, 4))
