# SPDX-License-Identifier: Apache-2.0
"""torchvision's detectors and ResNets under Detectron2's names (torchvision 0.29 and older).

Names and orders were read off the two code bases' modules; tests/model_zoo compares their outputs.
"""

from collections.abc import Sequence
from functools import partial

import torch

from vastdet.model_zoo.key_map import (
    SAME,
    ClassRows,
    Converter,
    Layout,
    Pair,
    background_last,
    foreground_only,
    sizes_first,
)
from vastdet.model_zoo.twins import torchvision_detector

# Blocks of the four stages and convolutions of a block (He et al. 2016, table 1).
RESNETS: dict[int, tuple[tuple[int, int, int, int], int]] = {
    18: ((2, 2, 2, 2), 2),
    34: ((3, 4, 6, 3), 2),
    50: ((3, 4, 6, 3), 3),
    101: ((3, 4, 23, 3), 3),
    152: ((3, 8, 36, 3), 3),
}
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
NUM_HEAD_CONVS = 4
NUM_LEVELS = 5  # P3 to P7
NUM_SIZES, NUM_RATIOS = 3, 3  # RetinaNet's anchors of a location


def weight_and_bias(
    source: str,
    detectron2: str,
    *,
    layout: Layout = SAME,
    alias: str = "",
    classes: tuple[int, ...] | None = None,
) -> list[Pair]:
    """The two tensors of a linear layer, a convolution or a norm; arguments as in `Pair`."""
    return [
        Pair(
            f"{source}.{tensor}",
            f"{detectron2}.{tensor}",
            layout,
            (f"{alias}.{tensor}",) if alias else (),
            classes,
        )
        for tensor in ("weight", "bias")
    ]


def _conv_and_norm(conv: str, norm: str, detectron2: str) -> list[Pair]:
    pairs = [Pair(f"{conv}.weight", f"{detectron2}.weight")]
    return pairs + [Pair(f"{norm}.{t}", f"{detectron2}.norm.{t}") for t in NORM_TENSORS]


def resnet_pairs(depth: int, source: str = "", detectron2: str = "") -> list[Pair]:
    """Every tensor of a ResNet without its classifier; the arguments are name prefixes."""
    blocks, convs = RESNETS[depth]
    return stage_pairs(blocks, convs, source, detectron2)


def stage_pairs(
    blocks: Sequence[int], convs: int, source: str = "", detectron2: str = ""
) -> list[Pair]:
    """As `resnet_pairs`, from the blocks of each stage and the convolutions of a block."""
    pairs = _conv_and_norm(f"{source}conv1", f"{source}bn1", f"{detectron2}stem.conv1")
    for stage, num_blocks in enumerate(blocks, start=1):
        for block in range(num_blocks):
            old = f"{source}layer{stage}.{block}."
            new = f"{detectron2}res{stage + 1}.{block}."
            for i in range(1, convs + 1):
                pairs += _conv_and_norm(f"{old}conv{i}", f"{old}bn{i}", f"{new}conv{i}")
            # Basic blocks keep 64 channels through the first stage and need no shortcut there.
            if block == 0 and (stage > 1 or convs == 3):
                pairs += _conv_and_norm(
                    f"{old}downsample.0", f"{old}downsample.1", f"{new}shortcut"
                )
    return pairs


def fpn_pairs(first_level: int, last_level: int) -> list[Pair]:
    """The lateral and output convolutions of a feature pyramid over C_first..C_last."""
    pairs = []
    for i, level in enumerate(range(first_level, last_level + 1)):
        for old, new in (("inner_blocks", "fpn_lateral"), ("layer_blocks", "fpn_output")):
            name = f"backbone.fpn.{old}.{i}"
            pairs += weight_and_bias(f"{name}.0", f"backbone.{new}{level}", alias=name)
    return pairs


def _p6_p7_pairs() -> list[Pair]:
    pairs = []
    for name in ("p6", "p7"):
        old = f"backbone.fpn.extra_blocks.{name}"
        pairs += weight_and_bias(old, f"backbone.top_block.{name}")
    return pairs


def _detector_backbone_pairs() -> list[Pair]:
    return resnet_pairs(50, "backbone.body.", "backbone.bottom_up.")


def _detector(
    name: str, config: str, pairs: list[Pair], constants: dict[str, torch.Tensor] | None = None
) -> Converter:
    twin = partial(torchvision_detector, name)
    return Converter(name, config, tuple(pairs), constants=constants or {}, twin=twin)


def faster_rcnn() -> Converter:
    """`fasterrcnn_resnet50_fpn`: ResNet-50 FPN, RPN, two-layer box head (v1 of the builder)."""
    rpn = "proposal_generator.rpn_head"
    pairs = [
        *_detector_backbone_pairs(),
        *fpn_pairs(2, 5),
        *weight_and_bias("rpn.head.conv.0.0", f"{rpn}.conv", alias="rpn.head.conv"),
        *weight_and_bias("rpn.head.cls_logits", f"{rpn}.objectness_logits"),
        *weight_and_bias("rpn.head.bbox_pred", f"{rpn}.anchor_deltas"),
        *weight_and_bias("roi_heads.box_head.fc6", "roi_heads.box_head.fc1"),
        *weight_and_bias("roi_heads.box_head.fc7", "roi_heads.box_head.fc2"),
        *weight_and_bias(
            "roi_heads.box_predictor.cls_score",
            "roi_heads.box_predictor.cls_score",
            layout=background_last(),
            classes=ClassRows(before=1),
        ),
        *weight_and_bias(
            "roi_heads.box_predictor.bbox_pred",
            "roi_heads.box_predictor.bbox_pred",
            layout=foreground_only(4),
            classes=ClassRows(inner=4, before=1),
        ),
    ]
    return _detector("fasterrcnn_resnet50_fpn", "torchvision/faster_rcnn_R_50_FPN", pairs)


def retinanet() -> Converter:
    """`retinanet_resnet50_fpn`: ResNet-50 FPN with P6 from P5, heads without norm (v1)."""
    pairs = [*_detector_backbone_pairs(), *fpn_pairs(3, 5), *_p6_p7_pairs()]
    for old, new in (("classification_head", "cls_subnet"), ("regression_head", "bbox_subnet")):
        for i in range(NUM_HEAD_CONVS):
            conv = f"head.{old}.conv"
            alias = f"{conv}.{2 * i}"
            pairs += weight_and_bias(f"{conv}.{i}.0", f"head.{new}.{2 * i}", alias=alias)
    anchors = sizes_first(NUM_SIZES, NUM_RATIOS)
    pairs += weight_and_bias(
        "head.classification_head.cls_logits",
        "head.cls_score",
        layout=anchors,
        classes=(NUM_SIZES * NUM_RATIOS, 1),
    )
    pairs += weight_and_bias("head.regression_head.bbox_reg", "head.bbox_pred", layout=anchors)
    return _detector("retinanet_resnet50_fpn", "torchvision/retinanet_R_50_FPN", pairs)


def fcos() -> Converter:
    """`fcos_resnet50_fpn`: ResNet-50 FPN with P6 from P5, group-norm heads without scales."""
    pairs = [*_detector_backbone_pairs(), *fpn_pairs(3, 5), *_p6_p7_pairs()]
    for old, new in (("classification_head", "cls_subnet"), ("regression_head", "bbox_subnet")):
        for i in range(NUM_HEAD_CONVS):
            for layer in (3 * i, 3 * i + 1):  # convolution, group norm; then an activation
                pairs += weight_and_bias(f"head.{old}.conv.{layer}", f"head.{new}.{layer}")
    pairs += weight_and_bias(
        "head.classification_head.cls_logits", "head.cls_score", classes=(1, 1)
    )
    pairs += weight_and_bias("head.regression_head.bbox_reg", "head.bbox_pred")
    pairs += weight_and_bias("head.regression_head.bbox_ctrness", "head.centerness")
    scales = {"head.scales": torch.ones(NUM_LEVELS)}
    return _detector("fcos_resnet50_fpn", "torchvision/fcos_R_50_FPN", pairs, scales)


def resnet(depth: int) -> Converter:
    """`resnet<depth>`: a classifier's trunk, under the names of a Detectron2 ResNet."""
    pairs = tuple(resnet_pairs(depth))
    ignored = ("num_batches_tracked", "fc.weight", "fc.bias")
    width = 64 if depth < 50 else 256
    backbone = (
        *("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.OUT_FEATURES", ["res5"]),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", width),
    )
    return Converter(f"resnet{depth}", "", pairs, ignored=ignored, backbone=backbone)


def torchvision_converters() -> dict[str, Converter]:
    """Every torchvision model that can be converted, by torchvision's name."""
    converters = [faster_rcnn(), retinanet(), fcos(), *(resnet(depth) for depth in RESNETS)]
    return {converter.name: converter for converter in converters}
