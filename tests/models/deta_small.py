# SPDX-License-Identifier: Apache-2.0
"""A small DETA whose weights follow from their names, so that any code can hold the same.

Run as a program, with transformers 4 installed, the last of which has DETA, it writes what that
code makes of it: `python -m tests.models.deta_small tests/models/deta_expected.json`.
"""

import json
import re
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet import add_vastdet_config
from vastdet.detr.detections import pairs_after_nms
from vastdet.detr.neck import ChannelMapper
from vastdet.detr.structures import Targets
from vastdet.model_zoo.deformable_models import deta_transformer_pairs
from vastdet.model_zoo.key_map import Converter
from vastdet.models.deta.deta import DETA, build_criterion, build_transformer

WIDTH, NUM_HEADS, FEEDFORWARD, NUM_CLASSES, NUM_QUERIES = 32, 4, 48, 5, 40
NUM_ENCODER, NUM_DECODER, NUM_LEVELS, NUM_DETECTIONS = 1, 2, 5, 30
CHANNELS = {"res3": 8, "res4": 12, "res5": 16}
# Their selection wants a thousand tokens.
SIZES = [(208, 260), (160, 200)]
# Two boxes of the first image all but coincide, so that a query answers for both.
TARGETS = [
    {
        "labels": [1, 4, 2, 0],
        "boxes": [
            [0.5, 0.5, 0.9, 0.9],
            [0.51, 0.5, 0.9, 0.88],
            [0.3, 0.7, 0.1, 0.1],
            [0.7, 0.3, 0.4, 0.4],
        ],
    },
    {"labels": [3], "boxes": [[0.45, 0.5, 0.7, 0.9]]},
]


class PooledPixels(Backbone):
    """Means of the pixels, weighted: three maps that any code can be given."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for i, (name, channels) in enumerate(CHANNELS.items()):
            weights = uniform(f"backbone {name}", (channels, 3, 1, 1)) * 2
            maps[name] = F.conv2d(F.avg_pool2d(x, 8 << i) * (4 << i), weights)
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            n: ShapeSpec(channels=c, stride=8 << i) for i, (n, c) in enumerate(CHANNELS.items())
        }


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1, 1) that depend on the name alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return 2 * torch.rand(shape, generator=generator) - 1


def value_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that the authors' code calls `name`."""
    values = uniform(name, shape)
    if len(shape) > 1:
        return values * 2 * values[0].numel() ** -0.5
    if name == f"bbox_embed.{NUM_DECODER}.layers.2.bias":
        return values * 0.3 + torch.tensor([0.0, 0.0, 2.5, 2.5])  # proposals that NMS drops
    return values * 0.3 + (1.0 if name.endswith("weight") else 0.0)


def images() -> list[Tensor]:
    return [uniform(f"image {i}", (3, *size)) for i, size in enumerate(SIZES)]


def targets() -> Targets:
    num_slots = max(len(x["labels"]) for x in TARGETS)
    labels = torch.zeros(len(TARGETS), num_slots, dtype=torch.int64)
    boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(len(TARGETS), num_slots, 1)
    for i, entry in enumerate(TARGETS):
        labels[i, : len(entry["labels"])] = torch.tensor(entry["labels"])
        boxes[i, : len(entry["boxes"])] = torch.tensor(entry["boxes"])
    return Targets(labels, boxes, tuple(len(x["labels"]) for x in TARGETS), ("first", "second"))


def converter() -> Converter:
    return Converter(
        name="small DETA",
        config="",
        pairs=tuple(deta_transformer_pairs(NUM_ENCODER, NUM_DECODER, num_levels=NUM_LEVELS)),
    )


def authors_weights(model: DETA) -> dict[str, Tensor]:
    """Every tensor but the backbone's under the authors' name."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = {}
    for pair in converter().pairs:
        value = value_of(pair.source, shapes[pair.detectron2])
        weights.update(dict.fromkeys((pair.source, *pair.copies), value))
    return weights


def small_deta(cfg: CfgNode) -> DETA:
    node = cfg.MODEL.DETA
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = WIDTH, NUM_HEADS, FEEDFORWARD
    node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS = NUM_ENCODER, NUM_DECODER
    node.NUM_QUERIES, node.NUM_CLASSES, node.NUM_LEVELS = NUM_QUERIES, NUM_CLASSES, NUM_LEVELS
    backbone = PooledPixels()
    model = DETA(
        backbone=backbone,
        neck=ChannelMapper(
            backbone.output_shape(), list(CHANNELS), embed_dim=WIDTH, num_levels=NUM_LEVELS
        ),
        transformer=build_transformer(node),
        criterion=build_criterion(node),
        num_classes=NUM_CLASSES,
        max_detections_per_image=NUM_DETECTIONS,
        select_detections=partial(pairs_after_nms, nms_threshold=0.7),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    model.load_state_dict(converter().to_detectron2(authors_weights(model)))
    return model


# The authors' names, and what transformers calls the same tensors.
THEIR_NAMES = (
    (r"^input_proj", "model.input_proj"),
    (r"^transformer\.", "model."),
    (r"(encoder.*)\.norm1", r"\1.self_attn_layer_norm"),
    (r"(encoder.*)\.norm2", r"\1.final_layer_norm"),
    (r"(decoder.*)\.norm1", r"\1.encoder_attn_layer_norm"),
    (r"(decoder.*)\.norm2", r"\1.self_attn_layer_norm"),
    (r"(decoder.*)\.norm3", r"\1.final_layer_norm"),
    (r"(layers\.\d+)\.linear(\d)", r"\1.fc\2"),
    (r"cross_attn", "encoder_attn"),
)


def their_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        for pattern, new in THEIR_NAMES:
            name = re.sub(pattern, new, name)
        if ".in_proj_" in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace(".in_proj_", f".{letter}_proj.")] = part
        else:
            renamed[name] = value
    return renamed


class TheirBackbone(nn.Module):
    """The same maps in the form that transformers expects."""

    def forward(self, x: Tensor) -> Any:
        maps = tuple(PooledPixels()(x).values())
        return type("Maps", (), {"feature_maps": maps})


def their_model() -> nn.Module:
    from transformers import ResNetConfig
    from transformers.models.deprecated.deta import DetaConfig, DetaForObjectDetection

    config = DetaConfig(
        backbone_config=ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, *CHANNELS.values()],
            depths=[1, 1, 1, 1],
            out_features=["stage2", "stage3", "stage4"],
        ),
        d_model=WIDTH,
        encoder_layers=NUM_ENCODER,
        decoder_layers=NUM_DECODER,
        encoder_attention_heads=NUM_HEADS,
        decoder_attention_heads=NUM_HEADS,
        encoder_ffn_dim=FEEDFORWARD,
        decoder_ffn_dim=FEEDFORWARD,
        num_feature_levels=NUM_LEVELS,
        num_queries=NUM_QUERIES,
        two_stage_num_proposals=NUM_QUERIES,
        num_labels=NUM_CLASSES,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        auxiliary_loss=True,
    )
    model = DetaForObjectDetection(config)
    model.model.backbone.model = TheirBackbone()
    cfg = get_cfg()
    add_vastdet_config(cfg)
    weights = their_names(authors_weights(small_deta(cfg)))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    return model


def rounded(tensor: Tensor) -> Any:
    """Nested lists of numbers of seven digits."""
    if tensor.dim() == 0:
        return float(f"{tensor.item():.7g}")
    return [rounded(part) for part in tensor]


def expected() -> dict[str, Any]:
    """What transformers makes of the images, as lists of numbers."""
    from transformers.models.deprecated.deta import DetaImageProcessor

    model = their_model()
    height, width = (max(size[i] for size in SIZES) for i in range(2))
    pixels = torch.zeros(len(SIZES), 3, height, width)
    mask = torch.zeros(len(SIZES), height, width, dtype=torch.long)
    for i, image in enumerate(images()):
        pixels[i, :, : image.shape[1], : image.shape[2]] = image
        mask[i, : image.shape[1], : image.shape[2]] = 1
    labels = [
        {"class_labels": torch.tensor(x["labels"]), "boxes": torch.tensor(x["boxes"])}
        for x in TARGETS
    ]
    found = model(pixels, pixel_mask=mask, labels=labels)
    found.loss.backward()
    layers = [*found.auxiliary_outputs, {"logits": found.logits, "pred_boxes": found.pred_boxes}]
    gradients = {
        re.sub(r"^model\.decoder\.(class|bbox)_embed", r"\1_embed", name): rounded(
            parameter.grad.norm()
        )
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and ".backbone." not in name
    }
    detections = DetaImageProcessor().post_process_object_detection(found, 0.0, SIZES)
    losses = {name: rounded(loss.detach()) for name, loss in found.loss_dict.items()}
    return {
        "references": rounded(found.init_reference_points),
        "logits": [rounded(layer["logits"]) for layer in layers],
        "boxes": [rounded(layer["pred_boxes"]) for layer in layers],
        "detections": [
            {name: rounded(values[:NUM_DETECTIONS]) for name, values in image.items()}
            for image in detections
        ],
        "losses": losses,
        "gradient_norms": gradients,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(expected()) + "\n", "utf-8")
