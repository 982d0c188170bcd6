# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor

from vastdet.detr.criterion import LossWeights
from vastdet.detr.losses import FocalLoss
from vastdet.detr.one_to_many import MatchedPairs, OneToManyCriterion, OverlapAssigner
from vastdet.detr.structures import LayerPredictions, SetPredictions, Targets
from vastdet.layers.boxes import cxcywh_to_xyxy, generalized_iou

NUM_LAYERS, NUM_CLASSES = 2, 4


def assigner(threshold: float = 0.6, **options: int) -> OverlapAssigner:
    matcher = Matcher([threshold], [0, 1], allow_low_quality_matches=True)
    return OverlapAssigner(matcher, **{"max_positives": 1000, **options})


def criterion() -> OneToManyCriterion:
    return OneToManyCriterion(
        proposal_assigner=assigner(0.7),
        assigner=assigner(0.6),
        class_loss=FocalLoss(),
        weights=LossWeights(1.0, 5.0, 2.0),
    )


def truth(counts: tuple[int, ...] = (5, 0, 2), seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    num_slots = max(1, *counts)
    boxes = torch.rand(len(counts), num_slots, 4, generator=generator) * 0.4 + 0.3
    labels = torch.randint(NUM_CLASSES, (len(counts), num_slots), generator=generator)
    return Targets(labels, boxes, counts, tuple("abc"[: len(counts)]))


def predictions(targets: Targets, num_queries: int = 60, seed: int = 1) -> LayerPredictions:
    """Random predictions that start from boxes about the targets."""
    generator = torch.Generator().manual_seed(seed)
    batch, num_slots, _ = targets.boxes.shape
    source = torch.randint(num_slots, (batch, num_queries), generator=generator)
    image = torch.arange(batch)[:, None]
    noise = torch.randn(batch, num_queries, 4, generator=generator) * 0.05
    shape = (NUM_LAYERS, batch, num_queries)
    return LayerPredictions(
        torch.randn(*shape, NUM_CLASSES, generator=generator).requires_grad_(),
        (torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2).requires_grad_(),
        (targets.boxes[image, source] + noise).clamp(0.02, 0.98),
    )


def iou_of(one: Tensor, other: Tensor) -> float:
    return generalized_iou(cxcywh_to_xyxy(one), cxcywh_to_xyxy(other))[0].item()


def pairs_by_loops(
    references: Tensor, boxes: Tensor, threshold: float, max_per_box: int
) -> list[tuple[int, int]]:
    """(query, slot) of one image, box by box."""
    ious = [[iou_of(box, reference) for reference in references] for box in boxes]
    positives = [0] * len(boxes)
    for query in range(len(references) if len(boxes) else 0):
        column = [row[query] for row in ious]
        is_best = any(row[query] == max(row) for row in ious)
        if is_best or max(column) >= threshold:
            positives[column.index(max(column))] += 1
    pairs = []
    for slot, row in enumerate(ious):
        ranked = sorted(range(len(row)), key=lambda query: -row[query])
        pairs += [(query, slot) for query in ranked[: min(positives[slot], max_per_box)]]
    return pairs


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("max_per_box", [1, 4])
def test_pairs_by_loops(threshold: float, max_per_box: int) -> None:
    targets = truth()
    found = predictions(targets)
    assert found.references is not None
    pairs = assigner(threshold, max_per_box=max_per_box).pairs(found, targets)
    for i, count in enumerate(targets.num_boxes):
        is_pair = pairs.slots[i] >= 0
        queries, slots = (x[i, is_pair].tolist() for x in (pairs.queries, pairs.slots))
        made = list(zip(queries, slots, strict=True))
        boxes = targets.boxes[i, :count]
        assert made == pairs_by_loops(found.references[i], boxes, threshold, max_per_box)


def test_a_query_may_answer_for_two_boxes() -> None:
    targets = Targets(
        torch.tensor([[1, 2]]),
        torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.52, 0.5, 0.4, 0.4]]]),
        (2,),
        ("a",),
    )
    # Two are positive for each box, but the second box overlaps the second more than the fourth.
    references = torch.tensor([[[x, 0.5, 0.4, 0.4] for x in (0.5, 0.505, 0.53, 0.54)]])
    found = LayerPredictions(torch.zeros(2, 1, 4, 4), references.expand(2, -1, -1, -1), references)
    pairs = assigner().pairs(found, targets)
    assert pairs.queries.tolist() == [[0, 1, 2, 1]]
    assert pairs.slots.tolist() == [[0, 0, 1, 1]]
    assert assigner().assign(found, targets)[0].tolist() == [[0, 1, 1, -1]]


def test_the_last_box_wins_the_class() -> None:
    pairs = MatchedPairs.padded(
        [
            (torch.tensor([2, 0, 2]), torch.tensor([0, 0, 1])),
            (torch.tensor([1]), torch.tensor([3])),
            (torch.zeros(0, dtype=torch.int64),) * 2,
        ]
    )
    assert pairs.slots.tolist() == [[0, 0, 1], [3, -1, -1], [-1, -1, -1]]
    assert pairs.slot_of_each(3).tolist() == [[0, -1, 1], [-1, 3, -1], [-1, -1, -1]]


def test_positives_are_drawn_at_random_where_there_are_too_many() -> None:
    targets = truth((3,))
    found = predictions(targets)
    free = assigner(0.3, max_per_box=60).pairs(found, targets)
    assert free.queries.shape[1] > 12
    torch.manual_seed(0)
    counts = set()
    for _ in range(10):
        bound = assigner(0.3, max_per_box=60, max_positives=12).pairs(found, targets)
        assert (bound.slots >= 0).sum() == 12
        counts.add(tuple(torch.bincount(bound.slots[0], minlength=3).tolist()))
    assert len(counts) > 1


def test_all_layers_share_the_pairs() -> None:
    targets = truth()
    matched = assigner().assign(predictions(targets), targets)
    assert matched.shape == (NUM_LAYERS, 3, 60)
    assert torch.equal(matched[0], matched[1])
    assert (matched[:, 1] == -1).all()


def test_fewer_queries_than_pairs_of_a_box() -> None:
    targets = truth((1,))
    pairs = assigner(0.1).pairs(predictions(targets, num_queries=2), targets)
    assert sorted(pairs.queries[0].tolist()) == [0, 1]


@pytest.mark.parametrize("references", [None, torch.zeros(1, 60, 2)])
def test_references_must_be_boxes(references: Tensor | None) -> None:
    targets = truth((1,))
    found = predictions(targets)
    wrong = LayerPredictions(found.logits, found.boxes, references)
    with pytest.raises(ValueError, match=r"reference boxes \(B, Q, 4\), but .* HungarianMatcher"):
        assigner().pairs(wrong, targets)


def test_losses_by_loops() -> None:
    targets = truth()
    found = predictions(targets)
    made = criterion()
    losses = made(SetPredictions(found, encoder=found.queries(0, 50)), targets)
    num_boxes = sum(targets.num_boxes)
    pairs = made.assigner.pairs(found, targets)
    l1 = giou_loss = torch.zeros(())
    for i in range(3):
        for query, slot in zip(pairs.queries[i].tolist(), pairs.slots[i].tolist(), strict=True):
            if slot >= 0:
                box, gt_box = found.boxes[-1, i, query], targets.boxes[i, slot]
                l1 = l1 + (box - gt_box).abs().sum()
                giou_loss = (
                    giou_loss + 1 - generalized_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(gt_box))[1]
                )
    torch.testing.assert_close(losses["loss_bbox"], 5 * l1 / num_boxes)
    torch.testing.assert_close(losses["loss_giou"], 2 * giou_loss / num_boxes)
    matched = pairs.slot_of_each(60)
    labels = torch.where(matched >= 0, targets.labels.gather(1, matched.clamp(min=0)), -1)[None]
    class_loss = FocalLoss()(
        found.logits[-1:], labels, labels.float(), num_boxes=torch.tensor(float(num_boxes))
    )
    torch.testing.assert_close(losses["loss_class"], class_loss[0])


def test_proposals_learn_objects_only() -> None:
    targets = truth()
    found = predictions(targets)
    made = criterion()
    losses = made(SetPredictions(found, encoder=found), targets)
    other = made(SetPredictions(found, encoder=found), targets.class_agnostic())
    assert losses["loss_class_enc"] == other["loss_class_enc"]
    assert losses["loss_class"] != other["loss_class"]


def test_without_boxes_there_is_a_gradient_of_zero() -> None:
    targets = truth((0,))
    found = predictions(targets)
    losses = criterion()(SetPredictions(found, encoder=found), targets)
    sum(losses.values()).backward()
    assert losses["loss_bbox"] == losses["loss_giou_enc"] == 0
    assert found.boxes.grad is not None
    assert not found.boxes.grad.any()
    assert found.logits.grad.any()
