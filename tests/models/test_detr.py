# SPDX-License-Identifier: Apache-2.0
"""DETR beside transformers' DetrForObjectDetection with the same random weights."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from tests.models import detr_reference as reference
from tests.models.comparison import largest_difference
from tests.models.family_reference import tiny_resnet
from torch import Tensor, nn

from vastdet.detr.detections import best_queries
from vastdet.detr.neck import MapProjection
from vastdet.detr.structures import LayerPredictions, SetPredictions, Targets
from vastdet.models.detr.detr import DETR, build_criterion, build_transformer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    model = transformers.DetrForObjectDetection(reference.their_config()).eval()
    reference.randomize(model)
    return model


@pytest.fixture
def model(cfg: CfgNode, theirs: nn.Module) -> DETR:
    node = cfg.MODEL.DETR
    reference.set_node(node)
    backbone = tiny_resnet(["res5"])
    model = DETR(
        backbone=backbone,
        neck=MapProjection(backbone.output_shape(), "res5", embed_dim=node.EMBED_DIM),
        transformer=build_transformer(node),
        criterion=build_criterion(node),
        num_classes=node.NUM_CLASSES,
        max_detections_per_image=node.NUM_QUERIES,
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
        select_detections=best_queries,
    )
    model.load_state_dict(reference.our_state_dict(theirs))
    return model


@torch.no_grad()
def layers_of(theirs: Any) -> LayerPredictions:
    """Their heads on the output of each of their decoder layers; the last is their prediction."""
    contents: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output: contents.append(output))
        for layer in theirs.model.decoder.layers
    ]
    pixels, mask = reference.padded_batch()
    last = theirs(pixels, pixel_mask=mask)
    for handle in handles:
        handle.remove()
    normed = theirs.model.decoder.layernorm(torch.stack(contents))
    layers = LayerPredictions(
        theirs.class_labels_classifier(normed), theirs.bbox_predictor(normed).sigmoid()
    )
    assert torch.equal(layers.logits[-1], last.logits)
    assert torch.equal(layers.boxes[-1], last.pred_boxes)
    return layers


def test_every_layer_equals_transformers(model: DETR, theirs: nn.Module) -> None:
    expected = layers_of(theirs)
    model.train()  # there is no dropout, and all layers predict
    with torch.no_grad():
        predicted = model.predict_padded(reference.random_images()).decoder
    assert expected.logits.std() > 0.1
    assert expected.logits.std(dim=2).min() > 0.01, "all queries predict the same"
    # Measured: logits 1.3e-5, boxes 4.2e-6.
    assert largest_difference(predicted.logits, expected.logits) < 5e-5
    assert largest_difference(predicted.boxes, expected.boxes) < 2e-5


@pytest.mark.parametrize("numbers", [[3, 1], [2, 0], [0, 0]])
def test_losses_equal_transformers(model: DETR, theirs: Any, numbers: list[int]) -> None:
    instances, labels = reference.ground_truth(numbers)
    layers = layers_of(theirs)
    config = reference.their_config(auxiliary_loss=True)
    total, expected, _ = theirs.loss_function(
        layers.logits[-1],
        labels,
        torch.device("cpu"),
        layers.boxes[-1],
        config,
        layers.logits,
        layers.boxes,
    )
    targets = Targets.from_instances(instances, ["first", "second"], torch.device("cpu"))
    losses = model.criterion(SetPredictions(layers), targets)
    weights = {"class": 1, "bbox": 5, "giou": 2}
    for name, other in (("class", "ce"), ("bbox", "bbox"), ("giou", "giou")):
        hidden = sum(expected[f"loss_{other}_{i}"] for i in range(2))
        for ours, value in (
            (losses[f"loss_{name}"], expected[f"loss_{other}"]),
            (losses[f"loss_{name}_aux"], hidden),
        ):
            difference = largest_difference(ours, torch.as_tensor(value) * weights[name])
            assert difference < 1e-5 * max(1.0, float(ours))
    assert largest_difference(sum(losses.values()), total) < 1e-5 * float(total)


def test_detections_equal_transformers(model: DETR, theirs: nn.Module) -> None:
    pixels, mask = reference.padded_batch()
    with torch.no_grad():
        expected = transformers.DetrImageProcessor().post_process_object_detection(
            theirs(pixels, pixel_mask=mask), threshold=0.0, target_sizes=reference.SIZES
        )
        model.eval()
        predictions = model.predict_padded(reference.random_images())
        found = model.detections(predictions.decoder, reference.SIZES)
    for ours, other in zip(found, expected, strict=True):
        order = other["scores"].argsort(descending=True)
        assert largest_difference(ours.scores, other["scores"][order]) < 5e-5
        assert torch.equal(ours.pred_classes, other["labels"][order])
        assert largest_difference(ours.pred_boxes.tensor, other["boxes"][order]) < 2e-3
