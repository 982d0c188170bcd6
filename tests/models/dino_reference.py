# SPDX-License-Identifier: Apache-2.0
"""The small DINO whose outputs, losses and gradients in the authors' code are known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from detectron2.structures import Boxes, Instances
from torch import Tensor

from vastdet.detr.neck import ChannelMapper
from vastdet.detr.structures import Targets
from vastdet.layers.boxes import cxcywh_to_xyxy
from vastdet.model_zoo.deformable_models import dino_transformer_pairs
from vastdet.model_zoo.key_map import Converter
from vastdet.model_zoo.torchvision_models import stage_pairs
from vastdet.models.dino.dino import DINO, build_criterion, build_transformer

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


def converter() -> Converter:
    """The names of the small model."""
    return Converter(
        name="small DINO",
        config="",
        pairs=(
            *stage_pairs([1, 1, 1, 1], 3, "backbone.0.body.", "backbone."),
            *dino_transformer_pairs(NUM_ENCODER, NUM_DECODER, num_levels=NUM_LEVELS),
        ),
    )


def small_dino(cfg: CfgNode, state_dict: dict[str, Tensor]) -> DINO:
    """Our model with the authors' weights; its input is normalised already."""
    node = cfg.MODEL.DINO
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = 64, 8, 128
    node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS = NUM_ENCODER, NUM_DECODER
    node.NUM_QUERIES, node.NUM_CLASSES, node.NUM_LEVELS = 30, 20, NUM_LEVELS
    backbone = tiny_resnet()
    model = DINO(
        backbone=backbone,
        neck=ChannelMapper(
            backbone.output_shape(), node.IN_FEATURES, embed_dim=64, num_levels=NUM_LEVELS
        ),
        transformer=build_transformer(node),
        criterion=build_criterion(node),
        num_classes=20,
        max_detections_per_image=25,
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
    )
    model.load_state_dict(converter().to_detectron2(state_dict))
    return model


def read(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "detr_family" / f"{name}.pt", weights_only=True)


def make_targets(entries: list[dict[str, Tensor]], sizes: list[list[int]]) -> Targets:
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
