# SPDX-License-Identifier: Apache-2.0
"""DAB-DETR beside transformers: outputs, losses and gradients of a small random model."""

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.transformers_reference import (
    COMMON_RENAMES,
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

RENAMES = (
    (r"^model\.query_refpoint_embeddings", "transformer.query_source.box_logits"),
    (r"^model\.encoder\.query_scale", "transformer.encoder.position_scale"),
    (r"^model\.decoder\.ref_point_head", "transformer.decoder.query_position.ref_point_head"),
    (r"^model\.decoder\.ref_anchor_head", "transformer.decoder.spatial_query.size_head"),
    (r"^class_embed", "transformer.decoder.class_heads.0"),
    # A block of theirs holds attention and norm, and names both after itself.
    (r"\.(self|cross)_attn\.\1_attn_layer_norm", r".\1_attn_norm"),
    (r"\.(self|cross)_attn\.\1_attn[._]", r".\1_attn."),
    (r"query_pos_sine_proj", "query_spatial"),
    (r"(query|key)_content_proj", r"\1_content"),
    (r"(query|key)_pos_proj", r"\1_position"),
    (r"value_proj", "value"),
    (r"output_proj", "out_proj"),
    *COMMON_RENAMES,
)


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = small_config(transformers.DabDetrConfig, "hidden_size", auxiliary_loss=True)
    model = transformers.DabDetrForObjectDetection(config).eval()
    randomise(model)
    return model


@pytest.fixture
def ours(cfg: CfgNode, theirs: nn.Module) -> OurHalf:
    node = cfg.MODEL.DAB_DETR
    node.merge_from_other_cfg(CfgNode(SIZES))
    model = OurHalf(build_transformer(node))
    # Their decoder knows the box head a second time, under the same memory.
    model.load_state_dict(without_backbone(theirs.state_dict(), RENAMES))
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
    their_gradients = without_backbone({k: p.grad for k, p in theirs.named_parameters()}, RENAMES)
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
