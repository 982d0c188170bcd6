# SPDX-License-Identifier: Apache-2.0
"""DAB-DETR beside transformers: outputs, losses and gradients of a small random model."""

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.comparison import assert_same_gradients, assert_same_predictions
from tests.models.transformers_reference import (
    DAB_RENAMES,
    SIZES,
    OurHalf,
    assert_same_evaluation,
    labelled,
    padded_batch,
    random_dab_detr,
    weighted_losses,
    without_backbone,
)
from torch import nn

from vastdet.models.dab_detr.dab_detr import build_criterion, build_transformer


@pytest.fixture(scope="module", params=[0, 2], ids=["no patterns", "two patterns"])
def theirs(request: pytest.FixtureRequest) -> nn.Module:
    pytest.importorskip("transformers")
    return random_dab_detr(request.param)


@pytest.fixture
def ours(cfg: CfgNode, theirs: nn.Module) -> OurHalf:
    node = cfg.MODEL.DAB_DETR
    node.merge_from_other_cfg(CfgNode({**SIZES, "NUM_PATTERNS": theirs.config.num_patterns}))
    model = OurHalf(build_transformer(node))
    # Their decoder knows the box head a second time, under the same memory.
    model.load_state_dict(without_backbone(theirs.state_dict(), DAB_RENAMES))
    return model


def test_outputs_losses_and_gradients_equal_transformers(
    ours: OurHalf, theirs: nn.Module, cfg: CfgNode
) -> None:
    pixels, mask = padded_batch()
    labels, targets = labelled()
    feature, their_mask = theirs.model.backbone(pixels, mask)[0][-1]
    assert their_mask[1].sum() < their_mask[0].sum(), "the second image is padded"
    ours.train()
    found = ours(feature.detach(), their_mask)
    losses = build_criterion(cfg.MODEL.DAB_DETR)(found, targets)
    output = theirs(pixel_values=pixels, pixel_mask=mask, labels=labels)
    layers = [*output.auxiliary_outputs, {"logits": output.logits, "pred_boxes": output.pred_boxes}]
    logits, boxes = (torch.stack([x[k] for x in layers]) for k in ("logits", "pred_boxes"))
    assert_same_predictions(found.decoder, logits, boxes)
    expected = weighted_losses(output.loss_dict, class_weight=1.0)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    sum(losses.values()).backward()
    theirs.zero_grad()
    sum(expected.values()).backward()
    gradients = without_backbone({k: p.grad for k, p in theirs.named_parameters()}, DAB_RENAMES)
    assert_same_gradients(dict(ours.named_parameters()), gradients)


def test_evaluation_gives_the_last_layer(ours: OurHalf, theirs: nn.Module) -> None:
    features, _ = theirs.model.backbone(*padded_batch())
    assert_same_evaluation(ours, theirs, *features[-1])
