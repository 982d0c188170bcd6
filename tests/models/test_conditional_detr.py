# SPDX-License-Identifier: Apache-2.0
"""Conditional DETR beside transformers: outputs, losses and gradients of a small random model."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.comparison import assert_same_gradients, assert_same_predictions
from tests.models.transformers_reference import (
    COMMON_RENAMES,
    SIZES,
    OurHalf,
    assert_same_evaluation,
    labelled,
    padded_batch,
    randomise,
    small_config,
    weighted_losses,
    without_backbone,
)
from torch import nn

from vastdet.models.conditional_detr.conditional_detr import build_criterion, build_transformer

RENAMES = (
    (r"^model\.query_position_embeddings", "transformer.query_source.embedding"),
    (r"^model\.decoder\.ref_point_head", "transformer.query_source.ref_point_head"),
    (r"^class_labels_classifier", "transformer.decoder.class_heads.0"),
    (r"encoder_attn_layer_norm", "cross_attn_norm"),
    (r"encoder_attn", "cross_attn"),
    (r"q_pos_sine_proj", "query_spatial"),
    (r"q_(content|pos)_proj", r"query_\1"),
    (r"k_(content|pos)_proj", r"key_\1"),
    (r"_pos\.", "_position."),
    (r"(decoder.*)\.v_proj", r"\1.value"),
    (r"o_proj", "out_proj"),
    *COMMON_RENAMES,
)


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = small_config(transformers.ConditionalDetrConfig, "d_model")
    model = transformers.ConditionalDetrForObjectDetection(config).eval()
    randomise(model)
    return model


@pytest.fixture
def ours(cfg: CfgNode, theirs: nn.Module) -> OurHalf:
    node = cfg.MODEL.CONDITIONAL_DETR
    node.merge_from_other_cfg(CfgNode(SIZES))
    model = OurHalf(build_transformer(node))
    model.load_state_dict(without_backbone(theirs.state_dict(), RENAMES))
    return model


def first_layers(theirs: nn.Module, count: int, **inputs: Any) -> Any:
    """What they predict with only the first layers of the decoder.

    They offer all layers at once only where each layer reads the norm of the one before, unlike
    the authors' code.
    """
    layers = theirs.model.decoder.layers
    theirs.model.decoder.layers = layers[:count]
    output = theirs(**inputs)
    theirs.model.decoder.layers = layers
    return output


def test_outputs_losses_and_gradients_equal_transformers(
    ours: OurHalf, theirs: nn.Module, cfg: CfgNode
) -> None:
    pixels, mask = padded_batch()
    labels, targets = labelled()
    feature, their_mask = theirs.model.backbone(pixels, mask)[-1]
    assert their_mask[1].sum() < their_mask[0].sum(), "the second image is padded"
    ours.train()
    found = ours(feature.detach(), their_mask)
    losses = build_criterion(cfg.MODEL.CONDITIONAL_DETR)(found, targets)
    their_losses, logits, boxes = {}, [], []
    for i, number in enumerate(("_0", "_1", "")):
        output = first_layers(theirs, i + 1, pixel_values=pixels, pixel_mask=mask, labels=labels)
        logits.append(output.logits)
        boxes.append(output.pred_boxes)
        their_losses |= {f"{name}{number}": loss for name, loss in output.loss_dict.items()}
    assert_same_predictions(found.decoder, torch.stack(logits), torch.stack(boxes))
    expected = weighted_losses(their_losses, class_weight=2.0)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    sum(losses.values()).backward()
    theirs.zero_grad()
    sum(expected.values()).backward()
    gradients = without_backbone({k: p.grad for k, p in theirs.named_parameters()}, RENAMES)
    assert_same_gradients(dict(ours.named_parameters()), gradients)


def test_evaluation_gives_the_last_layer(ours: OurHalf, theirs: nn.Module) -> None:
    assert_same_evaluation(ours, theirs, *theirs.model.backbone(*padded_batch())[-1])
