# SPDX-License-Identifier: Apache-2.0
"""Small set-prediction models whose outputs, losses and gradients in the authors' code are known.

Parts and comparisons that the tests of DINO and DN-Deformable-DETR share.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from detectron2.structures import Boxes, Instances
from tests.models.comparison import assert_same_predictions
from torch import Tensor, nn

from vastdet.detr.denoising import Noise
from vastdet.detr.neck import ChannelMapper
from vastdet.detr.set_detector import SetDetector
from vastdet.detr.structures import LayerPredictions, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy
from vastdet.model_zoo.key_map import Converter, Pair
from vastdet.model_zoo.torchvision_models import stage_pairs

NUM_ENCODER, NUM_DECODER, NUM_LEVELS = 2, 3, 4


def tiny_resnet(out_features: Sequence[str] = ("res3", "res4", "res5")) -> ResNet:
    """torchvision's layout, one bottleneck a stage, a quarter of the width."""
    norm = {"norm": "FrozenBN"}
    stages = [
        ResNet.make_stage(
            BottleneckBlock,
            1,
            in_channels=16 if i == 0 else 32 << i,
            out_channels=64 << i,
            bottleneck_channels=16 << i,
            stride_per_block=[1 if i == 0 else 2],
            stride_in_1x1=False,
            **norm,
        )
        for i in range(4)
    ]
    return ResNet(BasicStem(3, 16, **norm), stages, out_features=list(out_features))


def small_converter(name: str, transformer_pairs: Sequence[Pair]) -> Converter:
    """The names of a small model with `tiny_resnet`."""
    backbone = stage_pairs([1, 1, 1, 1], 3, "backbone.0.body.", "backbone.")
    return Converter(name=name, config="", pairs=(*backbone, *transformer_pairs))


def small_model(
    architecture: Callable[..., SetDetector],
    node: CfgNode,
    build_transformer: Callable[[CfgNode], nn.Module],
    build_criterion: Callable[[CfgNode], nn.Module],
    max_detections: int,
) -> SetDetector:
    """The sizes of the authors' small models; the input is normalised already."""
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = 64, 8, 128
    node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS = NUM_ENCODER, NUM_DECODER
    node.NUM_QUERIES, node.NUM_CLASSES, node.NUM_LEVELS = 30, 20, NUM_LEVELS
    backbone = tiny_resnet()
    return architecture(
        backbone=backbone,
        neck=ChannelMapper(
            backbone.output_shape(), node.IN_FEATURES, embed_dim=64, num_levels=NUM_LEVELS
        ),
        transformer=build_transformer(node),
        criterion=build_criterion(node),
        num_classes=20,
        max_detections_per_image=max_detections,
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
    )


def read(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "detr_family" / f"{name}.pt", weights_only=True)


def make_targets(
    entries: Sequence[Mapping[str, Tensor]], sizes: Sequence[Sequence[int]]
) -> Targets:
    """Targets from CXCYWH shares of the image, by way of Detectron2's pixels."""
    instances = []
    for entry, (height, width) in zip(entries, sizes, strict=True):
        image = Instances((height, width))
        size = torch.tensor([width, height, width, height])
        image.gt_boxes = Boxes(cxcywh_to_xyxy(entry["boxes"]) * size)
        image.gt_classes = entry["labels"]
        instances.append(image)
    names = [f"image {i}" for i in range(len(entries))]
    return Targets.from_instances(instances, names, torch.device("cpu"))


def some_targets(reference: Mapping[str, Any], num_boxes: Sequence[int | None]) -> Targets:
    """The first `num_boxes` boxes of each image of a fixture, None for all."""
    entries = [
        {key: entry[key][:count] for key in ("labels", "boxes")}
        for entry, count in zip(reference["targets"], num_boxes, strict=True)
    ]
    return make_targets(entries, reference["inputs"]["sizes"])


def stored_noise(
    targets: Targets, num_versions: int, flip: Tensor, new_labels: Tensor, moves: Tensor
) -> Noise:
    """The authors' draws, which go through the boxes of the batch image by image, in our slots.

    They draw new labels only for those that flip.
    """
    num_images, num_slots = len(targets.num_boxes), max(targets.num_boxes)
    total = sum(targets.num_boxes)
    labels = torch.zeros(len(flip), dtype=torch.int64)
    labels[flip] = new_labels
    num_groups = len(flip) // (num_versions * total)
    image = torch.repeat_interleave(torch.arange(num_images), torch.tensor(targets.num_boxes))
    slot = torch.cat([torch.arange(n) for n in targets.num_boxes])
    fields = {}
    for name, values in {"flip": flip, "labels": labels, "moves": moves}.items():
        rest = values.shape[1:]
        rows = values.view(num_groups, num_versions, total, *rest)
        padded = rows.new_zeros(num_images, num_groups, num_versions, num_slots, *rest)
        padded[image, :, :, slot] = rows.movedim(2, 0)
        fields[name] = padded
    return Noise(**fields)


def stack(outputs: Mapping[str, Any]) -> LayerPredictions:
    """All layers of the authors' outputs."""
    layers = [*outputs.get("aux_outputs", []), outputs]
    return LayerPredictions(
        torch.stack([x["pred_logits"] for x in layers]),
        torch.stack([x["pred_boxes"] for x in layers]),
    )


def assert_same_detections(found: list[Instances], expected: list[dict[str, Tensor]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, theirs["scores"], atol=1e-5, rtol=0)
        assert torch.equal(ours.pred_classes, theirs["labels"])
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs["boxes"], atol=1e-3, rtol=0)


def assert_same_inference(model: SetDetector, reference: Mapping[str, Any]) -> None:
    """Last layer and detections of the images of a fixture."""
    inputs, expected = reference["inputs"], reference["eval"]
    outputs = expected["outputs"]
    model.eval()
    with torch.no_grad():
        last = model.predict_padded(inputs["images"]).decoder
        found = model.detections(last, [tuple(size) for size in inputs["sizes"]])
    assert_same_predictions(last, outputs["pred_logits"][None], outputs["pred_boxes"][None])
    assert_same_detections(found, expected["detections_input_size"])


def assert_same_matches(ours: Tensor, expected: list[list[Tensor]], name: str) -> None:
    """Slots (B, Q) of one layer beside the authors' pairs of indices for each image."""
    for slots, (queries, boxes) in zip(ours, expected, strict=True):
        theirs = torch.full_like(slots, -1)
        theirs[queries] = boxes
        assert torch.equal(slots, theirs), name


def summed_losses(
    losses: Mapping[str, Tensor], patterns: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """The authors' losses, weighted and summed as ours are.

    `patterns` maps the suffix of ours to names of theirs, with {} for the kind.
    """
    kinds = {"class": ("ce", 1.0), "bbox": ("bbox", 5.0), "giou": ("giou", 2.0)}
    return {
        f"loss_{ours}{suffix}": weight * sum(float(losses[name.format(theirs)]) for name in names)
        for ours, (theirs, weight) in kinds.items()
        for suffix, names in patterns.items()
    }


def compare_gradients(
    model: nn.Module, converter: Converter, expected: Mapping[str, Tensor]
) -> int:
    """Compare norm and product with a fixed wave of each gradient; returns how many."""
    parameters = dict(model.named_parameters())
    compared = 0
    for pair in converter.pairs:
        source = next((n for n in (pair.source, *pair.copies) if n in expected), None)
        if source is None:
            continue
        gradient = parameters[pair.detectron2].grad
        assert gradient is not None, source
        flat = gradient.flatten().double()
        norm, dot = float(flat.norm()), float(flat @ torch.arange(len(flat)).double().cos())
        their_norm, their_dot = expected[source].tolist()
        assert norm == pytest.approx(their_norm, rel=1e-3, abs=1e-5), source
        assert dot == pytest.approx(their_dot, abs=1e-3 * their_norm + 1e-5), source
        compared += 1
    return compared
