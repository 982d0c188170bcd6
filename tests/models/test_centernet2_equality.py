# SPDX-License-Identifier: Apache-2.0
"""CenterNet2 beside what the authors' code makes of the same weights (`centernet2_small`)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.centernet2_small import (
    detections_of,
    losses_of,
    proposals_of,
    small_centernet2,
)
from tests.models.comparison import largest_difference
from torch import Tensor, nn

EXPECTED = Path(__file__).with_name("centernet2_expected.json")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads(EXPECTED.read_text("utf-8"))


@pytest.fixture
def model(cfg: CfgNode) -> nn.Module:
    return small_centernet2(cfg)


def test_losses_and_gradients_equal_the_authors(model: nn.Module, expected: dict[str, Any]) -> None:
    losses = losses_of(model)
    # Measured: 1.2e-7 of each with AVX-512, 2.1e-6 without.
    found = {name: loss.item() for name, loss in losses.items()}
    assert found == pytest.approx(expected["losses"], rel=5e-6)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == expected["gradients"].keys(), "the authors' names are ours"
    for name, (total, absolute) in expected["gradients"].items():
        sums = torch.stack([gradients[name].sum(), gradients[name].abs().sum()])
        # Measured: 4e-7 of the sum of absolute values, but for the biases that a norm follows:
        # their gradients are rounding.
        assert largest_difference(sums, torch.tensor([total, absolute])) < max(
            1e-4 * absolute, 1e-5
        ), name


def test_proposals_equal_the_authors(model: nn.Module, expected: dict[str, Any]) -> None:
    for ours, theirs in zip(proposals_of(model), expected["proposals"], strict=True):
        boxes = ours.proposal_boxes.tensor
        # Measured: 4.6e-5 pixels (the file has seven digits), 1.2e-7.
        assert largest_difference(boxes, torch.tensor(theirs["boxes"])) < 1e-4
        scores = ours.objectness_logits.sigmoid()
        assert largest_difference(scores, torch.tensor(theirs["scores"])) < 1e-6


def test_detections_equal_the_authors(model: nn.Module, expected: dict[str, Any]) -> None:
    for ours, theirs in zip(detections_of(model), expected["detections"], strict=True):
        scores: Tensor = ours.scores
        # Measured: 8.9e-8, 3.8e-5 pixels.
        assert largest_difference(scores, torch.tensor(theirs["scores"])) < 2e-6
        assert largest_difference(ours.pred_boxes.tensor, torch.tensor(theirs["boxes"])) < 1e-3
        assert ours.pred_classes.tolist() == theirs["classes"]
        assert len(set(theirs["classes"])) > 1
