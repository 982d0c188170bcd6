# SPDX-License-Identifier: Apache-2.0
"""A small CenterNet2 whose weights follow from their names, so that any code can hold the same.

Run as a program, with the authors' code (github.com/xingyizhou/CenterNet2, commit bfc8b72) on
PYTHONPATH, it writes what that code makes of it:
`python -m tests.models.centernet2_small tests/models/centernet2_expected.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from tests.models.deta_small import uniform
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS, CHANNELS, NUM_CLASSES = ["p3", "p4", "p5"], 32, 5
SIZE = (96, 128)
# Half diagonals of 20 and 24 lie in two ranges; two boxes share a centre.
SIZES_OF_INTEREST = [[0, 24], [16, 48], [40, 10000000]]
GT_BOXES = [
    [[4.0, 6.0, 28.0, 30.0], [30.0, 10.0, 90.0, 70.0], [50.0, 30.0, 70.0, 50.0], [2, 2, 120, 94]],
    [],
]
GT_CLASSES = [[0, 4, 2, 3], []]


@BACKBONE_REGISTRY.register()
class PixelPyramid(Backbone):
    """Means of the pixels, weighted: three levels that any code can be given."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            name: F.conv2d(
                F.avg_pool2d(x, 8 << i) * (2 << i), 2 * uniform(name, (CHANNELS, 3, 1, 1))
            ).relu()
            for i, name in enumerate(LEVELS)
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {n: ShapeSpec(channels=CHANNELS, stride=8 << i) for i, n in enumerate(LEVELS)}

    @property
    def size_divisibility(self) -> int:
        return 32


def set_size(cfg: CfgNode) -> None:
    """Keys that both codes have."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.PIXEL_STD = [57.375, 57.12, 58.395]
    cfg.MODEL.BACKBONE.NAME = "PixelPyramid"
    heads, box_head = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    heads.IN_FEATURES, heads.NUM_CLASSES = LEVELS, NUM_CLASSES
    heads.IOU_THRESHOLDS, heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST = [0.6], 0.05, 0.7
    # Room for all proposals: none are drawn by chance.
    heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION = 500, 0.5
    box_head.NAME, box_head.NUM_FC, box_head.FC_DIM = "FastRCNNConvFCHead", 2, 32
    box_head.POOLER_RESOLUTION, box_head.CLS_AGNOSTIC_BBOX_REG = 5, True
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = [0.6, 0.7, 0.8]


def small_centernet2(cfg: CfgNode) -> nn.Module:
    """Ours, from a config with every vastdet key."""
    set_size(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CenterNetProposals"
    cfg.MODEL.ROI_HEADS.NAME = "ProbabilisticCascadeROIHeads"
    node = cfg.MODEL.CENTERNET2
    node.IN_FEATURES, node.SIZES_OF_INTEREST, node.NUM_CONVS = LEVELS, SIZES_OF_INTEREST, 2
    node.POST_NMS_TOPK_TRAIN, node.POST_NMS_TOPK_TEST = 60, 40
    return filled(build_model(cfg))


def authors_centernet2() -> nn.Module:
    """Theirs, with the values of their configs/Base-CenterNet2.yaml where they are not small."""
    # Importing the package registers its parts.
    from centernet.config import add_centernet_config

    cfg = get_cfg()
    add_centernet_config(cfg)
    set_size(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CenterNet"
    cfg.MODEL.ROI_HEADS.NAME = "CustomCascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE = True
    node = cfg.MODEL.CENTERNET
    node.IN_FEATURES, node.SOI, node.FPN_STRIDES = LEVELS, SIZES_OF_INTEREST, [8, 16, 32]
    node.NUM_CLASSES, node.NUM_BOX_CONVS = NUM_CLASSES, 2
    node.ONLY_PROPOSAL = node.WITH_AGN_HM = True
    node.REG_WEIGHT, node.POS_WEIGHT, node.NEG_WEIGHT = 1.0, 0.5, 0.5
    node.INFERENCE_TH, node.IGNORE_HIGH_FP = 0.0001, 0.85
    node.NMS_TH_TRAIN = node.NMS_TH_TEST = 0.9
    node.PRE_NMS_TOPK_TRAIN, node.PRE_NMS_TOPK_TEST = 4000, 1000
    node.POST_NMS_TOPK_TRAIN, node.POST_NMS_TOPK_TEST = 60, 40
    return filled(build_model(cfg))


def filled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(value_of(name, tuple(parameter.shape)))
    return model


def value_of(name: str, shape: tuple[int, ...]) -> Tensor:
    values = uniform(name, shape)
    if name.endswith("centernet_head.bbox_pred.bias"):
        return 2 + values
    if name.endswith("agn_hm.bias"):
        return values - 2
    if len(shape) == 1:
        return values * 0.3 + (1.0 if name.endswith(("weight", "scale")) else 0.0)
    if name.endswith("cls_score.weight"):
        values = values - values.mean(dim=1, keepdim=True)  # or one class would win everywhere
    return values * 2 * values[0].numel() ** -0.5


def batch() -> list[dict[str, Any]]:
    """Two images of noise on a slope, one without boxes."""
    records = []
    for i, (boxes, classes) in enumerate(zip(GT_BOXES, GT_CLASSES, strict=True)):
        slope = torch.linspace(0, 155, SIZE[1]).expand(3, *SIZE)
        image = (slope + 50 + 50 * uniform(f"image {i}", (3, *SIZE))).to(torch.uint8)
        instances = Instances(SIZE)
        instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.gt_classes = torch.tensor(classes, dtype=torch.long)
        records.append(
            {"image": image, "height": SIZE[0], "width": SIZE[1], "instances": instances}
        )
    return records


def losses_of(model: nn.Module) -> dict[str, Tensor]:
    with EventStorage():
        return model.train()(batch())


@torch.no_grad()
def proposals_of(model: nn.Module) -> list[Instances]:
    images: ImageList = model.eval().preprocess_image(batch())
    return model.proposal_generator(images, model.backbone(images.tensor), None)[0]


@torch.no_grad()
def detections_of(model: nn.Module) -> list[Instances]:
    return [output["instances"] for output in model.eval()(batch())]


def authors_results() -> dict[str, Any]:
    model = authors_centernet2()
    losses = losses_of(model)
    sum(losses.values()).backward()
    return {
        "losses": {k.replace("_agn_", "_"): v.item() for k, v in losses.items()},
        "gradients": {
            n: [p.grad.sum().item(), p.grad.abs().sum().item()] for n, p in model.named_parameters()
        },
        "proposals": [
            {"boxes": p.proposal_boxes.tensor.tolist(), "scores": p.objectness_logits.tolist()}
            for p in proposals_of(model)
        ],
        "detections": [
            {
                "boxes": d.pred_boxes.tensor.tolist(),
                "scores": d.scores.tolist(),
                "classes": d.pred_classes.tolist(),
            }
            for d in detections_of(model)
        ],
    }


if __name__ == "__main__":
    rounded = json.loads(
        json.dumps(authors_results()), parse_float=lambda x: float(f"{float(x):.7g}")
    )
    Path(sys.argv[1]).write_text(json.dumps(rounded) + "\n", "utf-8")
