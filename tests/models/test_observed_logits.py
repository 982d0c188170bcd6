# SPDX-License-Identifier: Apache-2.0
"""Every architecture with a sigmoid classifier shows its class logits, and trains as without."""

from contextlib import ExitStack

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.architectures import ARCHITECTURES, NUM_CLASSES, Architecture
from tests.models.test_architectures import build, sample, train_losses
from torch import Tensor, nn

from vastdet.layers.observed_logits import (
    DENOISING,
    ONE_TO_MANY,
    PARTS,
    PREDICTIONS,
    PROPOSALS,
    ObservedLogits,
    observable,
    observing,
)

# Softmax classifiers, and the second stages of CenterNet2.
UNOBSERVED = {"DETR", "Panoptic DETR", "Faster R-CNN FPN", "Faster R-CNN C4", "Cascade R-CNN",
              "Fast R-CNN", "CenterNet2", "Box classifier"}  # fmt: skip
# The parts that show logits beside the predictions.
FURTHER_PARTS = {
    "DINO": {PROPOSALS, DENOISING},
    "Relation-DETR": {PROPOSALS, DENOISING, ONE_TO_MANY},
    "Deformable DETR two_stage": {PROPOSALS},
    "H-Deformable-DETR": {PROPOSALS, ONE_TO_MANY},
    "Rank-DETR": {PROPOSALS, ONE_TO_MANY},
    "DETA": {PROPOSALS},
    "DN-Deformable-DETR": {DENOISING},
    "RT-DETR": {PROPOSALS, DENOISING},
    "RT-DETRv2": {PROPOSALS, DENOISING},
    "DN-DETR": {DENOISING},
    "DN-DETR with patterns": {DENOISING},
    **{
        f"CQ-DINO {v}": {PROPOSALS, DENOISING}
        for v in ("tree", "self-attention", "flat", "official")
    },
}
CLASS_AGNOSTIC = {"Deformable DETR two_stage", "H-Deformable-DETR", "Rank-DETR", "DETA"}


def step(model: nn.Module, shown: list[ObservedLogits] | None) -> dict[str, Tensor]:
    """The gradients of one training step, observed or not."""
    torch.manual_seed(1)
    model.zero_grad()
    # RetinaNet carries a running mean from step to step.
    vars(model).pop("loss_normalizer", None)
    batch = [sample(), sample(torch.tensor([[8.0, 8.0, 40.0, 60.0]]), size=(64, 96), seed=1)]
    with ExitStack() as stack, torch.jit.optimized_execution(False):
        if shown is not None:
            for module in model.modules():
                stack.enter_context(observable(module))
            stack.enter_context(observing(shown.append))
        sum(train_losses(model, batch).values()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_shows_its_logits_and_trains_as_without(architecture: Architecture, cfg: CfgNode) -> None:
    model = build(architecture, cfg)
    expected = step(model, None)
    shown: list[ObservedLogits] = []
    gradients = step(model, shown)
    assert gradients.keys() == expected.keys()
    assert all(gradients[name].equal(gradient) for name, gradient in expected.items())
    assert not {"losses"} & vars(model).keys()

    if architecture.name in UNOBSERVED:
        assert not shown
        return
    parts = {one.source.part for one in shown}
    assert PREDICTIONS in parts
    if architecture.name in FURTHER_PARTS:
        assert parts == {PREDICTIONS, *FURTHER_PARTS[architecture.name]}
    for one in shown:
        assert one.source.part in PARTS
        assert one.gradient.shape == one.logits.shape
        assert one.labels.shape == one.logits.shape[:-1]
        assert -1 <= one.labels.min() <= one.labels.max() < NUM_CLASSES
        is_agnostic = one.source.part == PROPOSALS and architecture.name in CLASS_AGNOSTIC
        assert one.source.class_agnostic is is_agnostic
        categories = one.source.categories
        assert (categories is not None) == architecture.name.startswith("CQ-DINO")
        if categories is not None:
            assert categories.shape == (2, one.logits.shape[-1])
            assert 0 <= categories.min() <= categories.max() < NUM_CLASSES
    own = [one for one in shown if one.source.part == PREDICTIONS]
    assert sum(int((one.labels >= 0).sum()) for one in own) > 0


def test_a_present_class_is_pulled_up_and_an_absent_one_down(cfg: CfgNode) -> None:
    model = build(next(a for a in ARCHITECTURES if a.name == "RetinaNet"), cfg)
    shown: list[ObservedLogits] = []
    step(model, shown)
    assert len(shown) == 5
    for one in shown:
        counted = one.counted.expand(one.labels.shape)
        present = torch.nn.functional.one_hot(one.labels.clamp(min=0), NUM_CLASSES).bool()
        present &= (one.labels >= 0)[..., None]
        assert (one.gradient[counted & ~present.any(-1)] > 0).all()
        assert (one.gradient[present] < 0).all()
        assert (one.gradient[~counted] == 0).all()
