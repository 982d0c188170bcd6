# SPDX-License-Identifier: Apache-2.0
"""The one-to-many branch: who sees whom, what it is matched with, and its losses by loops."""

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tests.detr.two_images import padded_maps, random_targets
from torch import Tensor, nn

from vastdet.detr.criterion import LossWeights, ObjectnessCriterion
from vastdet.detr.decoder import Decoder
from vastdet.detr.deformable import deformable_decoder_layer
from vastdet.detr.heads import box_head, class_head, per_layer
from vastdet.detr.hybrid import HybridCriterion, HybridTransformer, two_groups
from vastdet.detr.losses import FocalLoss
from vastdet.detr.matcher import HungarianMatcher
from vastdet.detr.query_selection import ObjectnessSelection
from vastdet.detr.query_source import MixedProposedBoxes
from vastdet.detr.refinement import LookForwardTwice
from vastdet.detr.structures import LayerPredictions, SetPredictions, Targets
from vastdet.detr.transformer import LevelsToTokens
from vastdet.layers.boxes import cxcywh_to_xyxy, generalized_iou
from vastdet.layers.positions import SinePositionEncoding

WIDTH, NUM_CLASSES, NUM_ONE, NUM_MANY, NUM_LAYERS = 32, 5, 4, 9, 3
SIZES = ((6, 8), (3, 4))


def transformer(num_many: int = NUM_MANY) -> HybridTransformer:
    torch.manual_seed(0)
    selection = ObjectnessSelection(
        WIDTH,
        NUM_ONE,
        class_head=class_head(WIDTH, NUM_CLASSES),
        box_head=box_head(WIDTH),
        num_training_queries=NUM_ONE + num_many,
    )
    layer = {
        "embed_dim": WIDTH,
        "num_heads": 4,
        "num_levels": len(SIZES),
        "num_points": 2,
        "feedforward_dim": 48,
    }
    made = HybridTransformer(
        to_tokens=LevelsToTokens(
            SinePositionEncoding(WIDTH), embed_dim=WIDTH, num_levels=len(SIZES)
        ),
        encoder=nn.Identity(),
        query_source=MixedProposedBoxes(WIDTH, selection),
        decoder=Decoder(
            (deformable_decoder_layer(**layer) for _ in range(NUM_LAYERS)),
            query_position=None,
            refinement=LookForwardTwice(1e-5),
            class_heads=per_layer(lambda: class_head(WIDTH, NUM_CLASSES), NUM_LAYERS, shared=False),
            box_heads=per_layer(lambda: box_head(WIDTH), NUM_LAYERS, shared=False),
            norm=nn.Identity(),
        ),
        num_one_to_one=NUM_ONE,
    )
    for parameter in made.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return made


def maps() -> tuple[list[Tensor], list[Tensor]]:
    return padded_maps(WIDTH, SIZES)


def targets(*counts: int) -> Targets:
    return random_targets(*counts, num_classes=NUM_CLASSES)


def criterion(num_repeats: int = 3, weight: float = 0.5) -> HybridCriterion:
    plain = ObjectnessCriterion(
        assigner=HungarianMatcher(), class_loss=FocalLoss(), weights=LossWeights()
    )
    return HybridCriterion(plain, num_repeats=num_repeats, weight=weight)


def assert_close(found: LayerPredictions, expected: LayerPredictions) -> None:
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-5, rtol=1e-4)


def test_two_groups_see_themselves_only() -> None:
    blocked = two_groups(2, 5, torch.device("cpu"))
    for row, column in itertools.product(range(5), repeat=2):
        assert blocked[row, column] == ((row < 2) != (column < 2))


def test_the_branch_changes_nothing_for_the_one_to_one_queries() -> None:
    model = transformer()
    trained = model(*maps())
    model.eval()
    inferred = model(*maps())
    assert inferred.hybrid is None
    assert inferred.decoder.logits.shape == (1, 2, NUM_ONE, NUM_CLASSES)
    last = LayerPredictions(trained.decoder.logits[-1:], trained.decoder.boxes[-1:])
    assert_close(last, inferred.decoder)


def test_each_group_is_as_if_it_were_alone() -> None:
    model = transformer()
    predictions = model(*maps())
    memory = model.to_tokens(*maps())
    queries, proposals = model.query_source(memory)
    assert predictions.hybrid is not None
    assert predictions.hybrid.encoder is None, "proposals are learned one-to-one alone"
    assert predictions.encoder is not None
    assert torch.equal(predictions.encoder.logits, proposals.logits)
    for found, start, stop in (
        (predictions.decoder, 0, NUM_ONE),
        (predictions.hybrid.decoder, NUM_ONE, None),
    ):
        alone = type(queries)(
            queries.content[:, start:stop],
            queries.boxes[:, start:stop],
            position=queries.position[:, start:stop],
        )
        assert_close(found, model.decoder(alone, memory))


def test_without_further_queries_there_is_no_branch() -> None:
    assert transformer(num_many=0)(*maps()).hybrid is None


def focal(logit: Tensor, target: bool) -> Tensor:
    p = logit.detach().sigmoid()
    if target:
        return -0.25 * (1 - p) ** 2 * torch.log(p)
    return -0.75 * p**2 * torch.log(1 - p)


@torch.no_grad()
def losses_by_loops(
    layer: LayerPredictions, truth: Targets, times: int, weights: tuple[float, float, float]
) -> dict[str, Tensor]:
    """Match one layer with every box `times` times and add up, pair by pair."""
    sums = {name: torch.zeros(()) for name in ("class", "bbox", "giou")}
    num_boxes = max(1, times * sum(truth.num_boxes))
    for image, count in enumerate(truth.num_boxes):
        logits, boxes = layer.logits[0, image], layer.boxes[0, image]
        slots = [slot for _ in range(times) for slot in range(count)]
        cost = torch.zeros(len(logits), len(slots))
        for q, (column, slot) in itertools.product(range(len(logits)), enumerate(slots)):
            gt_box, label = truth.boxes[image, slot], int(truth.labels[image, slot])
            giou = generalized_iou(cxcywh_to_xyxy(boxes[q]), cxcywh_to_xyxy(gt_box))[1]
            class_cost = focal(logits[q, label], True) - focal(logits[q, label], False)
            cost[q, column] = 2 * class_cost + 5 * (boxes[q] - gt_box).abs().sum() - 2 * giou
        rows, columns = linear_sum_assignment(cost.detach().numpy())
        slot_of = {int(q): slots[c] for q, c in zip(rows, columns, strict=True)}
        for q in range(len(logits)):
            label = int(truth.labels[image, slot_of[q]]) if q in slot_of else -1
            for k in range(NUM_CLASSES):
                sums["class"] += focal(logits[q, k], k == label)
            if q in slot_of:
                gt_box = truth.boxes[image, slot_of[q]]
                sums["bbox"] += (boxes[q] - gt_box).abs().sum()
                sums["giou"] += (
                    1 - generalized_iou(cxcywh_to_xyxy(boxes[q]), cxcywh_to_xyxy(gt_box))[1]
                )
    return {
        name: weight * loss / num_boxes
        for weight, (name, loss) in zip(weights, sums.items(), strict=True)
    }


@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (0, 0), (4, 0)])
def test_losses_by_loops(counts: tuple[int, int]) -> None:
    # Three copies of four boxes are more than the nine queries: some copies stay without one.
    truth = targets(*counts)
    predictions = transformer()(*maps())
    assert predictions.hybrid is not None
    made = criterion(num_repeats=3, weight=0.5)
    losses = {name: loss.detach() for name, loss in made(predictions, truth).items()}
    largest = 0.0
    for branch, times, weight, suffix in (
        (predictions.decoder, 1, 1.0, ""),
        (predictions.hybrid.decoder, 3, 0.5, "_o2m"),
    ):
        weights = (2 * weight, 5 * weight, 2 * weight)
        layers = [
            losses_by_loops(
                LayerPredictions(branch.logits[i : i + 1], branch.boxes[i : i + 1]),
                truth,
                times,
                weights,
            )
            for i in range(NUM_LAYERS)
        ]
        for name in ("class", "bbox", "giou"):
            expected = layers[-1][name], sum(layer[name] for layer in layers[:-1])
            found = losses[f"loss_{name}{suffix}"], losses[f"loss_{name}_aux{suffix}"]
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, torch.as_tensor(other), atol=1e-5, rtol=1e-4)
                largest = max(largest, float((one - other).abs()))
    print(f"largest difference {largest:.1e}")


def test_names_and_one_to_one_losses_stay() -> None:
    truth, predictions = targets(2, 1), transformer()(*maps())
    made = criterion()
    losses = made(predictions, truth)
    plain = made.criterion(predictions, truth)
    assert {name: loss for name, loss in losses.items() if name in plain} == plain
    assert set(losses) - set(plain) == {
        f"loss_{part}{suffix}_o2m" for part in ("class", "bbox", "giou") for suffix in ("", "_aux")
    }


def test_a_branch_may_have_proposals_of_its_own() -> None:
    generator = torch.Generator().manual_seed(3)

    def random(num_layers: int) -> LayerPredictions:
        logits = torch.randn(num_layers, 2, 6, NUM_CLASSES, generator=generator)
        return LayerPredictions(logits, torch.rand(num_layers, 2, 6, 4, generator=generator))

    branch = SetPredictions(random(2), random(1))
    truth, made = targets(2, 1), criterion()
    losses = made(SetPredictions(random(2), random(1), hybrid=branch), truth)
    expected = made.criterion(branch, truth.repeated(3))
    for name, loss in expected.items():
        torch.testing.assert_close(losses[f"{name}_o2m"], 0.5 * loss)
    assert "loss_class_enc_o2m" in losses


@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
def test_every_parameter_is_reached(counts: tuple[int, int]) -> None:
    model = transformer()
    sum(criterion()(model(*maps()), targets(*counts)).values()).backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None]
    assert unreached == ["to_tokens.level_embedding"], "which an encoder would read"
