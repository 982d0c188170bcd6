# SPDX-License-Identifier: Apache-2.0
import math

import torch

from vastdet.one_stage.scores import product_score, root_product_score, sqrt_score


def test_product_score_filters_by_class_probability() -> None:
    logits = torch.tensor([[2.0, -2.0], [0.0, -4.0]])
    centerness = torch.tensor([[0.0], [-3.0]])
    scores = product_score(logits, centerness, 0.3)
    sigmoid = [1 / (1 + math.exp(-x)) for x in (2.0, 0.0, -3.0)]
    expected = [[sigmoid[0] * 0.5, 0], [sigmoid[1] * sigmoid[2], 0]]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_sqrt_score_filters_by_the_score_itself() -> None:
    logits = torch.tensor([[2.0, -2.0], [0.0, -4.0]])
    centerness = torch.tensor([[0.0], [-3.0]])
    scores = sqrt_score(logits, centerness, 0.3)
    first = math.sqrt(0.5 / (1 + math.exp(-2)))
    torch.testing.assert_close(scores, torch.tensor([[first, 0], [0, 0]]))


def test_the_root_keeps_what_the_product_keeps_in_the_same_order() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 20, 3, generator=generator)
    centerness = torch.randn(2, 20, 1, generator=generator)
    product = product_score(logits, centerness, 0.4)
    root = root_product_score(logits, centerness, 0.4)
    torch.testing.assert_close(root**2, product)
    assert torch.equal(root > 0, logits.sigmoid() > 0.4)
    assert torch.equal(root.flatten().argsort(), product.flatten().argsort())
