# SPDX-License-Identifier: Apache-2.0
"""The mask head beside transformers' DetrForSegmentation, and the masks that are returned."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from tests.models import detr_reference as reference
from tests.models.comparison import largest_difference
from tests.models.family_reference import tiny_resnet
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.detr.detections import best_queries
from vastdet.detr.neck import MapProjection
from vastdet.detr.structures import Targets
from vastdet.models.detr.detr import build_criterion, build_transformer
from vastdet.models.detr.mask_head import MaskHead, QueryAttentionMaps
from vastdet.models.detr.mask_losses import MaskCriterion, MaskPredictions, mask_targets
from vastdet.models.detr.panoptic import PanopticDETR
from vastdet.models.detr.panoptic_merge import PanopticMerger

transformers = pytest.importorskip("transformers")
NUM_THINGS = 2


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    model = transformers.DetrForSegmentation(reference.their_config()).eval()
    reference.randomize(model)
    return model


def build(cfg: CfgNode, *, freeze_detector: bool = False) -> PanopticDETR:
    node = cfg.MODEL.PANOPTIC_DETR
    reference.set_node(node)
    backbone = tiny_resnet(["res2", "res3", "res4", "res5"])
    shapes, sizes = backbone.output_shape(), (node.EMBED_DIM, node.NUM_HEADS)
    return PanopticDETR(
        backbone=backbone,
        neck=MapProjection(shapes, "res5", embed_dim=node.EMBED_DIM),
        transformer=build_transformer(node),
        criterion=build_criterion(node, MaskCriterion, mask_weight=1.0, dice_weight=1.0),
        num_classes=node.NUM_CLASSES,
        max_detections_per_image=node.NUM_QUERIES,
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
        select_detections=best_queries,
        attention_maps=QueryAttentionMaps(*sizes),
        mask_head=MaskHead(shapes, node.MASK_FEATURES, embed_dim=sizes[0], num_heads=sizes[1]),
        # Random weights are not sure of anything.
        merger=PanopticMerger(NUM_THINGS, score_threshold=0.2),
        freeze_detector=freeze_detector,
    )


@pytest.fixture
def model(cfg: CfgNode, theirs: nn.Module) -> PanopticDETR:
    model = build(cfg)
    model.load_state_dict(reference.our_state_dict(theirs))
    return model


def all_masks(predictions: MaskPredictions) -> Tensor:
    """(B, Q, h, w)."""
    image, query = torch.ones(predictions.decoder.logits.shape[1:3]).nonzero(as_tuple=True)
    masks = predictions.mask_logits(image, query)
    return masks.unflatten(0, predictions.decoder.logits.shape[1:3])


def test_masks_equal_transformers(model: PanopticDETR, theirs: nn.Module) -> None:
    pixels, mask = reference.padded_batch()
    with torch.no_grad():
        expected = theirs(pixels, pixel_mask=mask)
        predictions = model.eval().predict_padded(reference.random_images())
        masks = all_masks(predictions)
    assert expected.pred_masks.std(dim=1).mean() > 0.01, "all queries have the same mask"
    assert predictions.padded_size == reference.PADDED
    # Measured: logits 1.2e-5, boxes 4.2e-6, masks 3e-5.
    assert largest_difference(predictions.decoder.logits[-1], expected.logits) < 5e-5
    assert largest_difference(predictions.decoder.boxes[-1], expected.pred_boxes) < 2e-5
    assert largest_difference(masks, expected.pred_masks) < 1e-4


def with_masks(numbers: list[int]) -> tuple[list[Instances], list[dict[str, Tensor]]]:
    instances, labels = reference.ground_truth(numbers)
    generator = torch.Generator().manual_seed(2)
    for image, label in zip(instances, labels, strict=True):
        masks = torch.rand(len(image), *image.image_size, generator=generator) < 0.3
        image.gt_masks = BitMasks(masks)
        label["masks"] = masks.float()
    return instances, labels


def test_losses_equal_transformers(model: PanopticDETR, theirs: Any) -> None:
    instances, labels = with_masks([3, 1])
    pixels, mask = reference.padded_batch()
    with torch.no_grad():
        expected = theirs(pixels, pixel_mask=mask, labels=labels).loss_dict
        batch = [{"instances": x} for x in instances]
        predictions = model.eval().predict_padded(reference.random_images())
        losses = model.criterion(predictions, model.targets(batch))
    for name in ("mask", "dice"):
        value = expected[f"loss_{name}"]
        assert largest_difference(losses[f"loss_{name}"], value) < 2e-5 * max(1.0, float(value))
    assert largest_difference(losses["loss_class"], expected["loss_ce"]) < 2e-5


def test_gradients_equal_transformers(model: PanopticDETR, theirs: Any) -> None:
    instances, labels = with_masks([2, 0])
    pixels, mask = reference.padded_batch()
    theirs.zero_grad()
    expected = theirs(pixels, pixel_mask=mask, labels=labels).loss_dict
    (expected["loss_mask"] + expected["loss_dice"]).backward()
    targets = model.targets([{"instances": x} for x in instances])
    losses = model.criterion(model.predict_padded(reference.random_images()), targets)
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    gradients = {reference.our_name(n): p.grad for n, p in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        if name.startswith(("mask_head", "attention_maps")):
            scale = gradients[name].abs().max()
            assert scale > 0, name
            assert (parameter.grad - gradients[name]).abs().max() < 1e-3 * scale + 1e-7, name


def test_masks_are_those_of_the_detections_in_the_original_frame(
    model: PanopticDETR, theirs: nn.Module
) -> None:
    image = reference.random_images()[1]
    height, width = image.shape[-2:]
    with torch.no_grad():
        expected = theirs(image[None])
        output = model.eval()([{"image": image, "height": 2 * height, "width": 3 * width}])[0]
    found = output["instances"]
    assert found.get_fields().keys() == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert found.image_size == (2 * height, 3 * width)
    assert 0 < len(found) < reference.NUM_QUERIES
    assert found.pred_classes.max() < NUM_THINGS
    scores, classes = expected.logits[0].softmax(dim=-1)[:, :-1].max(dim=-1)
    masks = F.interpolate(expected.pred_masks, (height, width), mode="bilinear")[0] > 0
    masks = masks.repeat_interleave(2, dim=1).repeat_interleave(3, dim=2)
    for i in range(len(found)):
        query = int((scores - found.scores[i]).abs().argmin())
        assert found.pred_classes[i] == classes[query]
        assert (found.pred_masks[i] != masks[query]).float().mean() < 1e-3
    ids, records = output["panoptic_seg"]
    assert ids.shape == (2 * height, 3 * width)
    assert ids.dtype == torch.int32
    assert records
    assert {r["id"] for r in records} == set(ids.unique().tolist()) - {0}
    assert [r["area"] for r in records] == [int((ids == r["id"]).sum()) for r in records]


def test_nothing_found(model: PanopticDETR) -> None:
    with torch.no_grad():
        # The likeliest class is stuff, and far less so than no object.
        head = model.transformer.decoder.class_heads[0]
        head.weight.zero_()
        head.bias.copy_(torch.linspace(0, 10, len(head.bias)))
        output = model.eval()([{"image": reference.random_images()[0]}])[0]
    height, width = reference.SIZES[0]
    assert output["instances"].pred_masks.shape == (0, height, width)
    ids, records = output["panoptic_seg"]
    assert ids.shape == (height, width)
    assert not ids.any()
    assert records == []


def test_a_frozen_detector_leaves_the_mask_head_to_learn(cfg: CfgNode) -> None:
    model = build(cfg, freeze_detector=True)
    instances, _ = with_masks([3, 1])
    batch = [
        {"image": image, "instances": x}
        for image, x in zip(reference.random_images(), instances, strict=True)
    ]
    sum(model.train()(batch).values()).backward()
    learning = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {"mask_head", "attention_maps"}
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_polygons_are_drawn_and_missing_masks_named() -> None:
    instances, _ = reference.ground_truth([1, 1])
    targets = Targets.from_instances(instances, ["a.jpg", "b.jpg"], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"a\.jpg has no gt_masks, only .*MODEL\.MASK_ON"):
        mask_targets(targets, instances)
    for image in instances:
        image.gt_masks = PolygonMasks([[[10.0, 20.0, 30.0, 20.0, 30.0, 40.0, 10.0, 40.0]]])
        image.gt_boxes = Boxes(torch.tensor([[10.0, 20.0, 30.0, 40.0]]))
    masks = mask_targets(targets, instances).masks
    assert masks.shape == (2, 1, *reference.PADDED)
    expected = torch.zeros(reference.PADDED, dtype=torch.bool)
    expected[20:40, 10:30] = True
    assert torch.equal(masks, expected.expand(2, 1, -1, -1))


def test_three_maps_of_the_backbone_are_needed() -> None:
    shapes = tiny_resnet().output_shape()
    for names in (["res4", "res3", "res2"], ["res4", "res3"]):
        with pytest.raises(ValueError, match=r"MASK_FEATURES is .* name three of these"):
            MaskHead(shapes, names, embed_dim=64, num_heads=8)
