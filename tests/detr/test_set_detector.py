# SPDX-License-Identifier: Apache-2.0
"""The meta-architecture with a small DINO: masks, grouping by size, bfloat16, errors."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from vastdet.detr.set_detector import SetDetector


@pytest.fixture
def model(cfg: CfgNode) -> SetDetector:
    torch.manual_seed(0)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = "DINO", ""
    cfg.MODEL.PIXEL_STD = [57.375, 57.12, 58.395]
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_timm_backbone", 0
    cfg.MODEL.TIMM.NAME = "test_resnet"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res3", "res4", "res5"]
    node = cfg.MODEL.DINO
    node.NUM_CLASSES, node.NUM_QUERIES, node.DENOISING.NUM_QUERIES = 3, 20, 10
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = 64, 4, 64
    node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS = 1, 2
    return build_model(cfg)


def record(height: int, width: int, *, num_boxes: int = 1) -> dict:
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[4.0, 6.0, 24.0, 30.0]]).repeat(num_boxes, 1))
    instances.gt_classes = torch.zeros(num_boxes, dtype=torch.int64)
    image = torch.randint(0, 255, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances}


def test_masks_mark_the_padding(model: SetDetector) -> None:
    images = [torch.zeros(3, 64, 96), torch.zeros(3, 33, 40)]
    levels, masks = model.padded_levels(images)
    for level, mask in zip(levels, masks, strict=True):
        assert mask.shape == (2, *level.shape[-2:])
        assert not mask[0, 0, 0]
    # The first map has stride 8: cell i reads the mask at pixel 8 i.
    assert (~masks[0][1]).sum() == 5 * 5


def test_a_batch_is_padded_to_a_multiple(model: SetDetector) -> None:
    model.size_divisibility = 32
    levels, masks = model.padded_levels([torch.zeros(3, 33, 70)])
    assert levels[0].shape[-2:] == (64 // 8, 96 // 8)
    assert (~masks[0][0]).sum() == 5 * 9


def test_results_keep_the_order_of_the_inputs(model: SetDetector) -> None:
    model.eval()
    batch = [record(64, 96), record(48, 40), record(64, 96)]
    with torch.no_grad():
        found = [x["instances"] for x in model(batch)]
        alone = [model([x])[0]["instances"] for x in batch]
    assert [x.image_size for x in found] == [(64, 96), (48, 40), (64, 96)]
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-4)


def test_an_empty_batch_at_inference(model: SetDetector) -> None:
    assert model.eval()([]) == []


def test_training_needs_instances(model: SetDetector) -> None:
    with pytest.raises(ValueError, match=r"needs 'instances' .*; got the keys \['image'\]"):
        model.train()([{"image": torch.zeros(3, 64, 64)}])


@pytest.mark.parametrize("num_boxes", [0, 1, 30])
def test_bfloat16_step_gives_every_parameter_a_gradient(model: SetDetector, num_boxes: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([record(64, 64, num_boxes=num_boxes)])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    # Distributed training waits for parameters that are left out of the graph.
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_bfloat16_inference(model: SetDetector) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.eval()([record(64, 64)])[0]["instances"]
    assert len(found) > 0
    assert found.scores.isfinite().all()
    assert found.pred_boxes.tensor.isfinite().all()
