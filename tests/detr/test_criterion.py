# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from vastdet.detr.criterion import LossWeights, SetCriterion
from vastdet.detr.losses import FocalLoss
from vastdet.detr.matcher import HungarianMatcher
from vastdet.detr.structures import LayerPredictions, SetPredictions, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy, generalized_iou


def instances(boxes: list[list[float]], classes: list[int]) -> Instances:
    image = Instances((50, 100))
    image.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    image.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return image


def targets() -> Targets:
    first = instances([[10.0, 5.0, 30.0, 25.0], [0.0, 0.0, 100.0, 50.0]], [1, 0])
    return Targets.from_instances([first, instances([], [])], ["a", "b"], torch.device("cpu"))


def predictions(num_layers: int = 2) -> LayerPredictions:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_layers, 2, 3, 4, generator=generator).requires_grad_()
    boxes = torch.rand(num_layers, 2, 3, 4, generator=generator) * 0.4 + 0.2
    return LayerPredictions(logits, boxes.requires_grad_())


def criterion() -> SetCriterion:
    return SetCriterion(
        assigner=HungarianMatcher(), class_loss=FocalLoss(), weights=LossWeights(1.0, 5.0, 2.0)
    )


def test_targets_are_shares_of_the_image() -> None:
    truth = targets()
    assert truth.num_boxes == (2, 0)
    assert truth.boxes[0, 0].tolist() == pytest.approx([0.2, 0.3, 0.2, 0.4])
    assert truth.labels[0].tolist() == [1, 0]
    assert truth.filled.tolist() == [[True, True], [False, False]]
    assert truth.class_agnostic().labels.sum() == 0


def test_a_batch_without_boxes_has_one_empty_slot() -> None:
    truth = Targets.from_instances([instances([], [])], ["a"], torch.device("cpu"))
    assert truth.labels.shape == (1, 1)
    assert not truth.filled.any()
    losses = criterion()(SetPredictions(LayerPredictions(*zeros())), truth)
    assert losses["loss_bbox"] == 0
    assert losses["loss_giou_aux"] == 0
    assert losses["loss_class"] > 0


def zeros() -> tuple[Tensor, Tensor]:
    return torch.zeros(2, 1, 3, 4), torch.full((2, 1, 3, 4), 0.5)


def test_box_losses_by_hand() -> None:
    truth, found = targets(), predictions()
    made = criterion()
    matched = made.assigner.assign(found, truth)
    losses = made.layer_losses(found, matched, truth, torch.tensor(2.0))
    for layer in range(2):
        l1 = giou_loss = torch.zeros(())
        for query, slot in enumerate(matched[layer, 0].tolist()):
            if slot < 0:
                continue
            box, gt_box = found.boxes[layer, 0, query], truth.boxes[0, slot]
            l1 = l1 + (box - gt_box).abs().sum()
            _, giou = generalized_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(gt_box))
            giou_loss = giou_loss + 1 - giou
        torch.testing.assert_close(losses["bbox"][layer], l1 / 2)
        torch.testing.assert_close(losses["giou"][layer], giou_loss / 2)


def test_losses_are_weighted_and_named() -> None:
    truth, found = targets(), predictions(3)
    made = criterion()
    losses = made(SetPredictions(found, encoder=predictions(1)), truth)
    assert set(losses) == {
        f"loss_{part}{suffix}"
        for part in ("class", "bbox", "giou")
        for suffix in ("", "_aux", "_enc")
    }
    plain = made.layer_losses(
        found, made.assigner.assign(found, truth), truth, made.count_boxes(truth)
    )
    torch.testing.assert_close(losses["loss_bbox"], 5 * plain["bbox"][-1])
    torch.testing.assert_close(losses["loss_giou_aux"], 2 * plain["giou"][:-1].sum())
    torch.testing.assert_close(losses["loss_class"], plain["class"][-1])
    sum(losses.values()).backward()
    assert found.logits.grad.isfinite().all()
    assert found.boxes.grad.isfinite().all()


def test_boxes_are_counted_at_least_once() -> None:
    made = criterion()
    assert made.count_boxes(targets()) == 2
    empty = Targets.from_instances([instances([], [])], ["a"], torch.device("cpu"))
    assert made.count_boxes(empty) == 1


class QualitySum(FocalLoss):
    """Adds up the qualities of matched queries: the generalised IoUs."""

    def quality(self, iou: Tensor, giou: Tensor) -> Tensor:
        return giou

    def per_query(self, logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        assert not ious.requires_grad
        return torch.where(labels >= 0, ious, 0.0) + 0 * logits.sum(dim=-1)


def test_the_class_loss_chooses_its_quality_and_proposals_may_have_another() -> None:
    truth, found, proposed = targets(), predictions(), predictions(1)
    made = SetCriterion(
        assigner=HungarianMatcher(),
        class_loss=QualitySum(),
        weights=LossWeights(1.0, 5.0, 2.0),
        proposal_class_loss=FocalLoss(),
    )
    losses = made(SetPredictions(found, encoder=proposed), truth)
    plain = criterion()(SetPredictions(found, encoder=proposed), truth)
    # 2 boxes of which all are matched: 1 - GIoU on average, twice its weight.
    torch.testing.assert_close(losses["loss_class"], 1 - losses["loss_giou"] / 2)
    torch.testing.assert_close(losses["loss_class_enc"], plain["loss_class_enc"])
    assert losses["loss_class"] != plain["loss_class"]
