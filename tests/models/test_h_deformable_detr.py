# SPDX-License-Identifier: Apache-2.0
"""H-Deformable-DETR beside the two-stage Deformable DETR of transformers, one group at a time.

Where that takes contents from the proposed boxes it is given learned ones, and for the one-to-many
queries the proposals after the first.
"""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.comparison import largest_difference
from tests.models.family_reference import make_targets
from tests.models.test_deformable_detr import (
    CHANNELS,
    ENTRIES,
    NUM_CLASSES,
    NUM_LAYERS,
    SIZES,
    WIDTH,
    TheirBackbone,
    authors_names,
    their_model,
)
from torch import Tensor, nn

from vastdet.detr.neck import ChannelMapper
from vastdet.model_zoo.deformable_models import deformable_detr_transformer_pairs
from vastdet.model_zoo.key_map import Converter
from vastdet.models.h_deformable_detr.h_deformable_detr import (
    HDeformableDETR,
    build_criterion,
    build_transformer,
)

NUM_ONE, NUM_MANY = 8, 14


class LearnedContents(nn.Module):
    """A norm whose second half of channels is replaced by contents (Q, C)."""

    def __init__(self, norm: nn.Module, contents: Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.contents = contents

    def forward(self, x: Tensor) -> Tensor:
        position, _ = self.norm(x).chunk(2, dim=-1)
        return torch.cat([position, self.contents.expand_as(position)], dim=-1)


def our_model(cfg: CfgNode, theirs: Any) -> HDeformableDETR:
    """Ours with the weights, and the very backbone, of theirs, and random contents."""
    node = cfg.MODEL.H_DEFORMABLE_DETR
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = WIDTH, 4, 48
    node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS = 2, NUM_LAYERS
    node.NUM_CLASSES, node.NUM_QUERIES = NUM_CLASSES, NUM_ONE
    node.ONE_TO_MANY.NUM_QUERIES = NUM_MANY
    backbone = TheirBackbone(theirs.model.backbone.model)
    model = HDeformableDETR(
        backbone=backbone,
        neck=ChannelMapper(backbone.output_shape(), list(CHANNELS), embed_dim=WIDTH, num_levels=4),
        transformer=build_transformer(node),
        criterion=build_criterion(node),
        num_classes=NUM_CLASSES,
        max_detections_per_image=30,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    pairs = deformable_detr_transformer_pairs("two_stage", 2, NUM_LAYERS, num_levels=4)
    converted = Converter("", "", tuple(pairs)).to_detectron2(authors_names(theirs.state_dict()))
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    missing = [name for name in missing if not name.startswith("backbone.")]
    assert missing == ["transformer.query_source.content.weight"]
    return model


@pytest.mark.parametrize("branch", ["one-to-one", "one-to-many", "inference"])
def test_outputs_equal_transformers(
    cfg: CfgNode, branch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = their_model("two_stage")
    ours = our_model(cfg, theirs)
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, *size, generator=generator) for size in SIZES]
    pixels = torch.zeros(2, 3, 96, 130)
    mask = torch.zeros(2, 96, 130, dtype=torch.long)
    for i, (height, width) in enumerate(SIZES):
        pixels[i, :, :height, :width] = images[i]
        mask[i, :height, :width] = 1
    ours.train(branch != "inference")
    predictions = ours.predict_padded(images, make_targets(ENTRIES, SIZES))
    assert (predictions.hybrid is None) == (branch == "inference")

    start, stop = (NUM_ONE, NUM_ONE + NUM_MANY) if branch == "one-to-many" else (0, NUM_ONE)
    contents = ours.transformer.query_source.content.weight[start:stop]
    theirs.model.pos_trans_norm = LearnedContents(theirs.model.pos_trans_norm, contents)
    labels = [{"class_labels": x["labels"], "boxes": x["boxes"]} for x in ENTRIES]
    topk = torch.topk
    with monkeypatch.context() as patch:
        patch.setattr(
            torch, "topk", lambda x, _, dim: [part[:, start:] for part in topk(x, stop, dim=dim)]
        )
        # Only with labels do they give the outputs of all layers.
        expected = theirs(pixels, pixel_mask=mask, labels=labels)
    layers = [*expected.auxiliary_outputs, expected]
    boxes = torch.stack([x["pred_boxes"] for x in layers])
    logits = torch.stack([x["logits"] for x in layers])
    assert boxes.shape == (NUM_LAYERS, 2, stop - start, 4)
    found = predictions.decoder
    if branch == "inference":
        boxes, logits = boxes[-1:], logits[-1:]
    elif branch == "one-to-many":
        assert predictions.hybrid is not None
        found = predictions.hybrid.decoder
    # Measured: see README.md of the model.
    assert largest_difference(found.logits, logits) < 2e-5
    assert largest_difference(found.boxes, boxes) < 5e-6
    if branch != "inference":
        assert predictions.encoder is not None
        proposed = expected.enc_outputs_coord_logits.sigmoid()
        assert largest_difference(predictions.encoder.logits[0], expected.enc_outputs_class) < 2e-5
        assert largest_difference(predictions.encoder.boxes[0], proposed) < 5e-6


def test_without_further_queries_it_is_one_to_one(cfg: CfgNode) -> None:
    theirs = their_model("two_stage")
    cfg = cfg.clone()
    ours = our_model(cfg, theirs)
    node = cfg.MODEL.H_DEFORMABLE_DETR
    node.ONE_TO_MANY.NUM_QUERIES = 0
    alone = build_transformer(node)
    state = ours.transformer.state_dict()
    state["query_source.content.weight"] = state["query_source.content.weight"][:NUM_ONE]
    alone.load_state_dict(state)
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, *size, generator=generator) for size in SIZES]
    levels, masks = ours.padded_levels(images)
    one, both = alone(levels, masks), ours.transformer(levels, masks)
    assert one.hybrid is None
    assert both.hybrid is not None
    assert largest_difference(one.decoder.logits, both.decoder.logits) < 2e-5
    assert largest_difference(one.decoder.boxes, both.decoder.boxes) < 5e-6
    targets = make_targets(ENTRIES, SIZES)
    criterion = build_criterion(node)
    losses = criterion(one, targets)
    assert not [name for name in losses if name.endswith("_o2m")]
    for name, loss in losses.items():
        torch.testing.assert_close(loss, criterion(both, targets)[name], rtol=1e-5, atol=1e-6)
