# SPDX-License-Identifier: Apache-2.0
"""DAB-DETR beside transformers: outputs, losses and gradients of a small random model."""

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.transformers_reference import (
    DAB_RENAMES,
    SIZES,
    OurHalf,
    labelled,
    largest_difference,
    padded_batch,
    randomise,
    small_config,
    weighted_losses,
    without_backbone,
)
from torch import nn

from vastdet.models.dab_detr.dab_detr import build_criterion, build_transformer


@pytest.fixture(scope="module", params=[0, 2], ids=["no patterns", "two patterns"])
def theirs(request: pytest.FixtureRequest) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = small_config(
        transformers.DabDetrConfig,
        "hidden_size",
        auxiliary_loss=True,
        num_patterns=request.param,
    )
    model = transformers.DabDetrForObjectDetection(config).eval()
    randomise(model)
    return model


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
    for i, layer in enumerate(layers):
        assert largest_difference(found.decoder.logits[i], layer["logits"]) < 2e-5
        assert largest_difference(found.decoder.boxes[i], layer["pred_boxes"]) < 2e-6
    expected = weighted_losses(output.loss_dict, class_weight=1.0)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    sum(losses.values()).backward()
    theirs.zero_grad()
    sum(expected.values()).backward()
    their_gradients = without_backbone(
        {k: p.grad for k, p in theirs.named_parameters()}, DAB_RENAMES
    )
    for name, parameter in ours.named_parameters():
        scale = max(float(their_gradients[name].abs().max()), 0.1)
        assert largest_difference(parameter.grad, their_gradients[name]) < 1e-4 * scale, name


def test_evaluation_gives_the_last_layer(ours: OurHalf, theirs: nn.Module) -> None:
    pixels, mask = padded_batch()
    feature, their_mask = theirs.model.backbone(pixels, mask)[0][-1]
    ours.eval()
    with torch.no_grad():
        found = ours(feature, their_mask)
        output = theirs(pixel_values=pixels, pixel_mask=mask)
    assert largest_difference(found.decoder.logits[-1], output.logits) < 2e-5
    assert largest_difference(found.decoder.boxes[-1], output.pred_boxes) < 2e-6
    assert len(found.decoder.logits) == 1
