# SPDX-License-Identifier: Apache-2.0
"""The parts of CenterNet2: head, proposals, scores of both stages, config."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model, build_roi_heads
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes, Instances
from tests.models.centernet2_small import SIZE, batch, losses_of, small_centernet2
from torch import Tensor

from vastdet.model_zoo import get_config
from vastdet.models.centernet2.head import CenterNetHead
from vastdet.models.centernet2.proposals import CenterNetProposals, ProposalLimits
from vastdet.models.centernet2.roi_heads import ProbabilisticCascadeROIHeads, joint_scores
from vastdet.models.centernet2.targets import CenterTargetAssigner

# Key of ours -> value of the authors' configs/Base-CenterNet2.yaml (commit bfc8b72).
AUTHORS = {
    "ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    "ROI_HEADS.IOU_THRESHOLDS": [0.6],
    "ROI_HEADS.NMS_THRESH_TEST": 0.7,
    "ROI_BOX_CASCADE_HEAD.IOUS": [0.6, 0.7, 0.8],
    "ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "ROI_BOX_HEAD.NUM_FC": 2,
    "ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "CENTERNET2.REG_WEIGHT": 1.0,
    "CENTERNET2.SCORE_THRESH": 0.0001,
    "CENTERNET2.PRE_NMS_TOPK_TRAIN": 4000,
    "CENTERNET2.POST_NMS_TOPK_TRAIN": 2000,
    "CENTERNET2.PRE_NMS_TOPK_TEST": 1000,
    "CENTERNET2.POST_NMS_TOPK_TEST": 256,
    "CENTERNET2.NMS_THRESH_TRAIN": 0.9,
    "CENTERNET2.NMS_THRESH_TEST": 0.9,
    "CENTERNET2.POS_WEIGHT": 0.5,
    "CENTERNET2.NEG_WEIGHT": 0.5,
    "CENTERNET2.IGNORE_HIGH_FP": 0.85,
}


def test_the_config_holds_the_values_of_the_authors() -> None:
    cfg = get_config("CenterNet2/centernet2_R_50_FPN_1x")
    for key, value in AUTHORS.items():
        node, name = key.split(".")
        found = cfg.MODEL[node][name]
        assert (list(found) if isinstance(found, tuple) else found) == value, key
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.MAX_ITER, list(solver.STEPS)) == (0.02, 90000, [60000, 80000])
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (4000, 0.00025)
    assert solver.CLIP_GRADIENTS.ENABLED
    assert solver.CLIP_GRADIENTS.CLIP_TYPE == "value"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("IN_FEATURES", ["p3", "p4", "p6"], r"names \['p6'\], but the backbone returns \['p3'"),
        ("SIZES_OF_INTEREST", [[0, 8], [8, 16]], r"is \[\[0, 8\], .*expected a \[smallest"),
        ("SIZES_OF_INTEREST", [[0, 8], [16, 8], [8, 32]], "expected a"),
        ("SIZES_OF_INTEREST", [[0, 8], [8], [8, 32]], "half diagonal for each of the levels"),
    ],
)
def test_a_wrong_config_says_what_is_expected(
    cfg: CfgNode, key: str, value: object, message: str
) -> None:
    small_centernet2(cfg)
    cfg.MODEL.CENTERNET2[key] = value
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_the_head_starts_at_the_prior_and_at_eight_strides() -> None:
    head = CenterNetHead(in_channels=32, num_levels=2, num_convs=1, prior_prob=0.05)
    logits, distances = head([torch.zeros(2, 32, 4, 5), torch.zeros(2, 32, 2, 3)])
    torch.testing.assert_close(logits[0].sigmoid(), torch.full((2, 1, 4, 5), 0.05))
    torch.testing.assert_close(distances[1], torch.full((2, 4, 2, 3), 8.0))


def test_each_level_has_its_own_scale_and_distances_are_not_negative() -> None:
    head = CenterNetHead(in_channels=32, num_levels=2, num_convs=0, norm="")
    with torch.no_grad():
        head.bbox_pred.bias.copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
        head.scales[1].scale.fill_(3)
    _, distances = head([torch.zeros(1, 32, 1, 1)] * 2)
    assert distances[0].flatten().tolist() == [0, 0, 1, 2]
    assert distances[1].flatten().tolist() == [0, 0, 3, 6]


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return width * height / (area_a + area_b - width * height)


def brute_force_proposals(
    logits: list[Tensor], distances: list[Tensor], strides: list[int], limits: ProposalLimits
) -> list[tuple[float, list[float]]]:
    """Score and box of the proposals of one image, from maps (H, W) and (4, H, W), best first."""
    candidates = []
    for level_logits, level_distances, stride in zip(logits, distances, strides, strict=True):
        of_level = []
        for row in range(level_logits.shape[0]):
            for column in range(level_logits.shape[1]):
                probability = level_logits[row, column].sigmoid().item()
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                left, top, right, bottom = (d * stride for d in level_distances[:, row, column])
                x0, y0, x1, y1 = (v.item() for v in (x - left, y - top, x + right, y + bottom))
                box = [x0, y0, max(x1, x0 + 0.01), max(y1, y0 + 0.01)]
                if probability > 0.2:
                    of_level.append((probability**0.5, box))
        candidates += sorted(of_level, reverse=True)[: limits.pre_nms_topk]
    kept: list[tuple[float, list[float]]] = []
    for score, box in sorted(candidates, reverse=True):
        if all(iou(box, other) <= limits.nms_thresh for _, other in kept):
            kept.append((score, box))
    return kept[: limits.post_nms_topk]


@pytest.mark.parametrize("training", [True, False])
def test_proposals_equal_loops(training: bool) -> None:
    strides = [8, 16]
    sizes = [(6, 8), (3, 4)]
    anchor_generator = DefaultAnchorGenerator(
        sizes=[[s] for s in strides], aspect_ratios=[1.0], strides=strides, offset=0.5
    )
    limits = {True: ProposalLimits(20, 0.5, 12), False: ProposalLimits(10, 0.3, 9)}
    generator = CenterNetProposals(
        in_features=["p3", "p4"],
        head=torch.nn.Identity(),
        anchor_generator=anchor_generator,
        target_assigner=CenterTargetAssigner(sizes_of_interest=[[0, 16], [16, 99]]),
        criterion=None,
        score_thresh=0.2,
        limits_train=limits[True],
        limits_test=limits[False],
    ).train(training)
    random = torch.Generator().manual_seed(0)
    logits = [2 * torch.randn(2, 1, *s, generator=random) for s in sizes]
    # No extent at all here and there.
    distances = [(3 * torch.randn(2, 4, *s, generator=random)).relu() for s in sizes]
    found = generator.predict_proposals(
        anchor_generator([torch.zeros(1, 1, *s) for s in sizes]),
        [x.flatten(1) for x in logits],
        [x.flatten(2).transpose(1, 2) for x in distances],
        [(40, 60), (48, 64)],
    )
    for i, proposals in enumerate(found):
        expected = brute_force_proposals(
            [x[i, 0] for x in logits], [x[i] for x in distances], strides, limits[training]
        )
        assert len(proposals) == len(expected) > 5
        scores, boxes = zip(*expected, strict=True)
        # Measured: 2e-7 and 4e-6 pixels.
        torch.testing.assert_close(
            proposals.objectness_logits.sigmoid(), torch.tensor(scores), atol=2e-6, rtol=0
        )
        torch.testing.assert_close(proposals.proposal_boxes.tensor, torch.tensor(boxes))
        assert proposals.proposal_boxes.tensor.min() < 0, "boxes are not clipped"
        assert proposals.image_size == [(40, 60), (48, 64)][i]


def test_no_proposal_at_all(cfg: CfgNode) -> None:
    small_centernet2(cfg)
    cfg.MODEL.CENTERNET2.SCORE_THRESH = 0.9999
    model = build_model(cfg)
    losses = losses_of(model)  # the second image has no boxes either
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        for output in model.eval()(batch()):
            assert output["instances"].pred_boxes.tensor.shape == (0, 4)


def test_joint_scores_are_the_geometric_mean() -> None:
    objectness = torch.tensor([0.25, 1.0, 0.0])
    probabilities = torch.tensor([[0.25, 0.01], [0.81, 0.0], [1.0, 0.5]])
    expected = torch.tensor([[0.25, 0.05], [0.9, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(joint_scores(objectness, probabilities), expected)


def make_proposals() -> list[Instances]:
    proposals = []
    for boxes, objectness in (
        ([[4.0, 4.0, 40.0, 30.0], [50.0, 20.0, 120.0, 90.0]], [0.9, 0.36]),
        ([[10.0, 10.0, 60.0, 80.0]], [0.5]),
    ):
        found = Instances(SIZE)
        found.proposal_boxes = Boxes(torch.tensor(boxes))
        found.objectness_logits = torch.tensor(objectness).logit()
        proposals.append(found)
    return proposals


def test_the_second_stage_multiplies_detectron2s_scores(cfg: CfgNode) -> None:
    model = small_centernet2(cfg).eval()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = -1.0, 1.0
    features = model.backbone(model.preprocess_image(batch()).tensor)
    results = []
    for name in ("CascadeROIHeads", "ProbabilisticCascadeROIHeads"):
        cfg.MODEL.ROI_HEADS.NAME = name
        heads = build_roi_heads(cfg, model.backbone.output_shape()).eval()
        heads.load_state_dict(model.roi_heads.state_dict())
        with torch.no_grad():
            results.append(heads(None, features, make_proposals())[0])
    for plain, joint, proposals in zip(*results, make_proposals(), strict=True):
        assert len(plain) == len(joint) == 5 * len(proposals)
        plain, joint = by_class_and_box(plain), by_class_and_box(joint)
        assert torch.equal(plain.pred_boxes.tensor, joint.pred_boxes.tensor)
        found = (joint.scores.square() / plain.scores).view(5, -1).sort(dim=1).values
        objectness = proposals.objectness_logits.sigmoid().sort().values
        torch.testing.assert_close(found, objectness.expand(5, -1))


def by_class_and_box(found: Instances) -> Instances:
    rows = [(c, *box) for c, box in zip(found.pred_classes, found.pred_boxes.tensor, strict=True)]
    return found[sorted(range(len(rows)), key=rows.__getitem__)]


def test_training_is_that_of_detectron2(cfg: CfgNode) -> None:
    ours = small_centernet2(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    theirs = build_model(cfg)
    assert isinstance(ours.roi_heads, ProbabilisticCascadeROIHeads)
    assert type(theirs.roi_heads) is CascadeROIHeads
    theirs.load_state_dict(ours.state_dict())
    # The order of the proposals is drawn by chance.
    torch.testing.assert_close(losses_of(ours), losses_of(theirs))


def sigmoid_model(cfg: CfgNode, **box_head: Any) -> torch.nn.Module:
    small_centernet2(cfg)
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    for key, value in box_head.items():
        cfg.MODEL.ROI_BOX_HEAD[key] = value
    torch.manual_seed(0)
    return build_model(cfg)


def test_sigmoid_classifiers_start_at_the_prior(cfg: CfgNode) -> None:
    model = sigmoid_model(cfg)
    for predictor in model.roi_heads.box_predictor:
        scores, _ = predictor(torch.zeros(1, 32))
        torch.testing.assert_close(scores.sigmoid(), torch.full((1, 6), 0.01))
    assert all(loss.isfinite() for loss in losses_of(model).values())


def test_the_federated_loss_reads_how_many_images_show_a_category(cfg: CfgNode) -> None:
    name = "centernet2_federated_test"
    MetadataCatalog.get(name).class_image_count = [
        {"id": i + 1, "image_count": 10**i} for i in range(5)
    ]
    cfg.DATASETS.TRAIN = (name,)
    model = sigmoid_model(cfg, USE_FED_LOSS=True, FED_LOSS_NUM_CLASSES=5)
    for predictor in model.roi_heads.box_predictor:
        # Frequency to the power 0.5.
        expected = torch.tensor([10**i for i in range(5)]).float().sqrt()
        torch.testing.assert_close(predictor.fed_loss_cls_weights, expected)
    partial, whole = losses_of(model), losses_of(sigmoid_model(cfg, USE_FED_LOSS=False))
    # Four categories and background are there: one category at the most is left out.
    for stage in range(3):
        key = f"loss_cls_stage{stage}"
        assert 0 < partial[key] <= whole[key]
    MetadataCatalog.remove(name)


def test_the_first_stage_alone_is_a_class_agnostic_detector(cfg: CfgNode) -> None:
    small_centernet2(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    model = build_model(cfg)
    assert set(losses_of(model)) == {f"loss_centernet_{x}" for x in ("pos", "neg", "loc")}
    with torch.no_grad():
        proposals = model.eval()(batch())[0]["proposals"]
    assert len(proposals) > 0
    assert proposals.has("objectness_logits")
