# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec

from vastdet.one_stage.head import CenternessHead

K = 3


def small_head(num_levels: int, **options: Any) -> CenternessHead:
    return CenternessHead(
        input_shape=[ShapeSpec(channels=32)] * num_levels,
        num_classes=K,
        num_convs=1,
        box_activation=torch.exp,
        **options,
    )


def test_the_classifier_starts_at_the_prior() -> None:
    head = small_head(2, prior_prob=0.05)
    logits, distances, _ = head([torch.zeros(1, 32, 4, 4)] * 2)
    torch.testing.assert_close(logits[0].sigmoid(), torch.full((1, K, 4, 4), 0.05))
    assert (distances[1] == 1).all(), "one stride to each side"


def test_levels_share_the_towers_but_not_the_scale() -> None:
    head = small_head(2)
    head.scales.data = torch.tensor([1.0, 2.0])
    feature = torch.randn(1, 32, 4, 4)
    logits, distances, centerness = head([feature, feature])
    torch.testing.assert_close(logits[0], logits[1])
    torch.testing.assert_close(centerness[0], centerness[1])
    torch.testing.assert_close(distances[0] ** 2, distances[1])


@pytest.mark.parametrize("on_reg", [False, True])
def test_centerness_reads_the_tower_that_the_config_names(on_reg: bool) -> None:
    head = small_head(1, centerness_on_reg=on_reg)
    head([torch.randn(1, 32, 4, 4)])[2][0].sum().backward()
    assert (head.bbox_subnet[0].weight.grad is not None) == on_reg
    assert (head.cls_subnet[0].weight.grad is not None) != on_reg
