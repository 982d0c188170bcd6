# SPDX-License-Identifier: Apache-2.0
"""ATSS: boxes from deltas, losses against loops, inference against a plain account, the config."""

import math
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, box_iou, generalized_box_iou

from vastdet.models.atss import ATSS

K = 3
SIZES = [16, 8, 4]


@pytest.fixture
def atss_cfg(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.META_ARCHITECTURE = "ATSS"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "test_resnet"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ATSS.NUM_CLASSES = K
    cfg.MODEL.ATSS.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.ATSS.ANCHOR_SCALE = 3.0
    cfg.MODEL.ATSS.NUM_CONVS = 1
    return cfg


@pytest.fixture
def model(atss_cfg: CfgNode) -> ATSS:
    torch.manual_seed(0)
    return build_model(atss_cfg)


def random_predictions(batch: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    logits, deltas, centerness = (
        [torch.randn(batch, channels, s, s, generator=generator) for s in SIZES]
        for channels in (K, 4, 1)
    )
    return logits, deltas, centerness


def flat(levels: list[Tensor]) -> Tensor:
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)


def ground_truth() -> list[Instances]:
    found = []
    for boxes in ([[4.0, 6, 24, 30], [30, 10, 90, 70], [2, 2, 120, 110]], [[50.0, 40, 80, 60]], []):
        instances = Instances((128, 128))
        instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.gt_classes = torch.arange(len(boxes)) % K
        found.append(instances)
    return found


def test_anchors_are_squares_about_the_middles_of_the_cells(model: ATSS) -> None:
    anchors = model.anchor_generator([torch.zeros(1, 1, s, s) for s in SIZES])
    for level, stride, size in zip(anchors, (8, 16, 32), SIZES, strict=True):
        assert len(level) == size * size, "one anchor a cell"
        half = 1.5 * stride
        first = torch.tensor([stride / 2 - half, stride / 2 - half] + [stride / 2 + half] * 2)
        torch.testing.assert_close(level.tensor[0], first)
        torch.testing.assert_close(level.tensor[1] - first, torch.tensor([stride, 0.0] * 2))


def test_the_head_predicts_alike_on_all_levels(model: ATSS) -> None:
    feature = torch.randn(2, 32, 4, 6)
    logits, deltas, centerness = model.head([feature] * 3)
    assert [x[0].shape[1] for x in (logits, deltas, centerness)] == [K, 4, 1]
    for output in (logits, deltas, centerness):
        assert output[0].shape[2:] == (4, 6)
        torch.testing.assert_close(output[0], output[2])
    assert deltas[0].min() < 0, "deltas have either sign"
    model.head.scales.data[1] = 3.0
    torch.testing.assert_close(model.head([feature] * 3)[1][1], 3 * deltas[1])


def test_centerness_comes_from_the_regression_tower(model: ATSS) -> None:
    model.head([torch.randn(1, 32, 4, 4)] * 3)[2][0].sum().backward()
    assert model.head.bbox_subnet[0].weight.grad is not None
    assert model.head.cls_subnet[0].weight.grad is None


def test_distances_are_those_of_torchvisions_boxes(model: ATSS) -> None:
    anchors = Boxes.cat(model.anchor_generator([torch.zeros(1, 1, s, s) for s in SIZES])).tensor
    deltas = 3 * torch.randn(2, len(anchors), 4, generator=torch.Generator().manual_seed(1))
    distances = model.side_distances(deltas, anchors)
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    for i in range(2):
        boxes = coder.decode_single(deltas[i], anchors)
        centers, sides = Boxes(anchors).get_centers(), anchors[:, 2:] - anchors[:, :2]
        expected = torch.cat([centers - boxes[:, :2], boxes[:, 2:] - centers], dim=1)
        torch.testing.assert_close(distances[i], expected / sides.repeat(1, 2), atol=1e-5, rtol=0)
    assert (distances < 0).any(), "some boxes leave the anchor's centre out"


def test_losses_are_the_formula(model: ATSS) -> None:
    """Focal loss / N+, 2 x (1 - GIoU) weighted by centre-ness, centre-ness cross-entropy / N+."""
    predictions, gt_instances = random_predictions(3), ground_truth()
    features = [torch.zeros(3, 1, s, s) for s in SIZES]
    images = ImageList(torch.zeros(3, 3, 128, 128), [(128, 128)] * 3)
    ours = model.forward_training(images, features, predictions, gt_instances)

    logits, deltas, centerness = (flat(x).double() for x in predictions)
    anchors = Boxes.cat(model.anchor_generator(features)).tensor.double()
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    cls = box = center = weights = 0.0
    num_positives = 0
    for i, instances in enumerate(gt_instances):
        matched = model.target_assigner.match(model.anchor_generator(features), instances).tolist()
        boxes = coder.decode_single(deltas[i], anchors)
        for r, index in enumerate(matched):
            label = K if index == len(instances) else int(instances.gt_classes[index])
            for k in range(K):
                p = 1 / (1 + math.exp(-logits[i, r, k]))
                p_t, alpha_t = (p, 0.25) if k == label else (1 - p, 0.75)
                cls -= alpha_t * (1 - p_t) ** 2 * math.log(p_t)
            if label == K:
                continue
            num_positives += 1
            gt = instances.gt_boxes.tensor[index].double()
            x, y = ((anchors[r, :2] + anchors[r, 2:]) / 2).tolist()
            left, top, right, bottom = x - gt[0], y - gt[1], gt[2] - x, gt[3] - y
            weight = math.sqrt(
                min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
            )
            weights += weight
            box += weight * (1 - generalized_box_iou(boxes[r][None], gt[None]).item())
            c = 1 / (1 + math.exp(-centerness[i, r, 0]))
            center -= weight * math.log(c) + (1 - weight) * math.log(1 - c)
    assert num_positives > 10
    expected = {
        "loss_cls": cls / num_positives,
        "loss_box_reg": 2 * box / weights,
        "loss_centerness": center / num_positives,
    }
    # Largest relative difference 1e-6.
    assert {k: v.item() for k, v in ours.items()} == pytest.approx(expected, rel=1e-5)


def test_inference_equals_a_plain_account(model: ATSS) -> None:
    """Threshold on the class, the best of each level, roots of products, NMS at 0.6 by class."""
    model.eval()
    model.test_score_thresh, model.test_topk_candidates = 0.7, 60
    predictions = random_predictions(1)
    features = [torch.zeros(1, 1, s, s) for s in SIZES]
    images = ImageList(torch.zeros(1, 3, 128, 128), [(120, 101)])
    ours = model.forward_inference(images, features, predictions)[0]

    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    boxes, scores, classes = [], [], []
    for level, anchors in enumerate(model.anchor_generator(features)):
        logits, deltas, centerness = (flat([x[level]])[0] for x in predictions)
        decoded = coder.decode_single(deltas, anchors.tensor)
        candidates = [
            (math.sqrt(p * c.sigmoid()), r, k)
            for r, (row, c) in enumerate(zip(logits.sigmoid().tolist(), centerness, strict=True))
            for k, p in enumerate(row)
            if p > 0.7
        ]
        for score, r, k in sorted(candidates, reverse=True)[:60]:
            boxes.append(decoded[r])
            scores.append(score)
            classes.append(k)
    clipped = torch.stack(boxes).clamp(min=0)
    clipped = torch.minimum(clipped, torch.tensor([101.0, 120.0, 101.0, 120.0]))
    keep = batched_nms(clipped, torch.tensor(scores), torch.tensor(classes), 0.6)[:100]
    assert len(ours) == len(keep) > 50
    torch.testing.assert_close(ours.scores, torch.tensor(scores)[keep])
    torch.testing.assert_close(ours.pred_boxes.tensor, clipped[keep])
    assert torch.equal(ours.pred_classes, torch.tensor(classes)[keep])
    for k in range(K):
        same = ours.pred_boxes.tensor[ours.pred_classes == k]
        assert box_iou(same, same).nan_to_num().triu(diagonal=1).max() <= 0.6


def test_nothing_above_the_threshold_gives_no_detections(atss_cfg: CfgNode) -> None:
    atss_cfg.MODEL.ATSS.SCORE_THRESH_TEST = 0.99
    model = build_model(atss_cfg).eval()
    with torch.no_grad():
        instances = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])[0]["instances"]
    assert instances.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TOPK", 0, "MODEL.ATSS.TOPK is 0; expected at least 1"),
        ("IN_FEATURES", ["p3", "p9"], r"MODEL.ATSS.IN_FEATURES names \['p9'\], but .*'p3'"),
    ],
)
def test_a_wrong_config_says_what_is_expected(
    atss_cfg: CfgNode, key: str, value: object, message: str
) -> None:
    atss_cfg.MODEL.ATSS[key] = value
    with pytest.raises(ValueError, match=message):
        build_model(atss_cfg)


@pytest.mark.parametrize("name", ["ATSS/atss_R_50_FPN_1x", "quick/atss_generated"])
def test_the_configs_build(cfg: CfgNode, repository: Path, name: str) -> None:
    cfg.merge_from_file(str(repository / "configs" / f"{name}.yaml"), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert isinstance(model, ATSS)
    build_optimizer(cfg, model)  # Detectron2's own must read the config too


def test_the_paper_s_anchors_and_constants(cfg: CfgNode, repository: Path) -> None:
    path = repository / "configs" / "ATSS" / "atss_R_50_FPN_1x.yaml"
    cfg.merge_from_file(str(path), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    sides = [a[0, 2] - a[0, 0] for a in model.anchor_generator.cell_anchors]
    assert sides == [64, 128, 256, 512, 1024]
    assert model.target_assigner.topk == 9
    assert model.criterion.loc_loss_weight == 2
    assert (model.test_nms_thresh, model.test_score_thresh) == (0.6, 0.05)
    assert model.backbone.top_block.in_feature == "p5"
