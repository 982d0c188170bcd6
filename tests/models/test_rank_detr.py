# SPDX-License-Identifier: Apache-2.0
"""Rank-DETR beside loops written from the paper: ranks, matching cost, losses of both branches."""

import itertools
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tests.detr.two_images import padded_maps, random_targets
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.detr.decoder import QueryState
from vastdet.detr.hybrid import HybridCriterion, HybridTransformer
from vastdet.detr.matcher import HungarianMatcher
from vastdet.detr.structures import LayerPredictions, Queries, Targets
from vastdet.model_zoo import get_config
from vastdet.models.rank_detr.matching import HighOrderMatcher, training_iteration
from vastdet.models.rank_detr.rank_detr import build_criterion, build_transformer

WIDTH, NUM_CLASSES, NUM_ONE, NUM_MANY, NUM_LAYERS = 32, 5, 6, 11, 4
SIZES = ((8, 10), (4, 5))


@pytest.fixture
def node(cfg: CfgNode) -> CfgNode:
    node = cfg.MODEL.RANK_DETR
    node.NUM_CLASSES, node.NUM_LEVELS, node.EMBED_DIM, node.NUM_HEADS = NUM_CLASSES, 2, WIDTH, 4
    node.FEEDFORWARD_DIM, node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS = 48, 1, NUM_LAYERS
    node.NUM_QUERIES, node.ONE_TO_MANY.NUM_QUERIES = NUM_ONE, NUM_MANY
    node.ONE_TO_MANY.NUM_REPEATS, node.ONE_TO_MANY.WEIGHT = 3, 0.5
    return node


def transformer(node: CfgNode) -> HybridTransformer:
    torch.manual_seed(0)
    model = build_transformer(node)
    for parameter in model.parameters():
        # Larger than at the start, so that every part, and every rank, shows in the result.
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def maps() -> tuple[list[Tensor], list[Tensor]]:
    return padded_maps(WIDTH, SIZES, filled=0.8)


def targets(*counts: int) -> Targets:
    return random_targets(*counts, num_classes=NUM_CLASSES)


def logit(box: Tensor) -> Tensor:
    """Of a box (4,), with box and 1 - box kept at or above 1e-3."""
    return torch.log(box.clamp(min=1e-3) / (1 - box).clamp(min=1e-3))


def decode_by_loops(
    model: HybridTransformer, queries: Queries, memory: Any, start: int, stop: int | None
) -> tuple[list[Tensor], list[Tensor], list[list[list[int]]]]:
    """Logits, boxes and orders of all layers for one group of queries, query by query."""
    decoder = model.decoder
    content, position = queries.content[:, start:stop], queries.position[:, start:stop]
    read = with_gradient = queries.boxes[:, start:stop]
    num_images, num_queries, _ = content.shape
    logits, boxes, orders = [], [], []
    for i, layer in enumerate(decoder.layers):
        content = layer(QueryState(content, position, read), memory)
        head, box_head = decoder.class_heads[i], decoder.box_heads[i]
        plain, delta = head.linear(content), box_head(content)
        new_logits, new_boxes = torch.zeros_like(plain), torch.zeros_like(delta)
        moved = torch.zeros_like(delta)
        for b, q in itertools.product(range(num_images), range(num_queries)):
            rank = start + q  # one-to-many ranks follow those of the one-to-one queries
            new_logits[b, q] = plain[b, q] + head.rank_logits.weight[rank]
            new_boxes[b, q] = (delta[b, q] + logit(with_gradient[b, q])).sigmoid()
            moved[b, q] = (delta[b, q] + logit(read[b, q])).sigmoid()
        logits.append(new_logits)
        boxes.append(new_boxes)
        if i == NUM_LAYERS - 1:
            break
        order = [
            sorted(range(num_queries), key=lambda q: -plain[b, q].max().item())
            for b in range(num_images)
        ]
        orders.append(order)
        mix = decoder.rank_contents[i]
        ranked = []
        for b in range(num_images):
            rows = []
            for rank, q in enumerate(order[b]):
                of_rank = mix.transform(mix.content.weight[start + rank])
                rows.append(mix.join(torch.cat([content[b, q], of_rank])))
            ranked.append(torch.stack(rows))
        content = torch.stack(ranked)
        position = torch.stack([position[b, order[b]] for b in range(num_images)])
        with_gradient = torch.stack([moved[b, order[b]] for b in range(num_images)])
        read = with_gradient.detach()
    return logits, boxes, orders


def test_ranks_by_loops(node: CfgNode) -> None:
    model = transformer(node)
    predictions = model(*maps())
    assert predictions.hybrid is not None
    memory = model.encoder(model.to_tokens(*maps()))
    queries, _ = model.query_source(memory)
    largest = 0.0
    for found, start, stop in (
        (predictions.decoder, 0, NUM_ONE),
        (predictions.hybrid.decoder, NUM_ONE, None),
    ):
        logits, boxes, orders = decode_by_loops(model, queries, memory, start, stop)
        assert all(ranks != sorted(ranks) for order in orders for ranks in order), "nothing moved"
        for one, other in (
            (found.logits, torch.stack(logits)),
            (found.boxes, torch.stack(boxes)),
        ):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
            largest = max(largest, float((one - other).detach().abs().max()))
        # The same gradient reaches the first layer through all the orders.
        weight = model.decoder.layers[0].cross_attn.output_proj.weight
        weights = torch.randn(found.boxes.shape, generator=torch.Generator().manual_seed(3))
        (one,) = torch.autograd.grad((found.boxes * weights).sum(), weight, retain_graph=True)
        (other,) = torch.autograd.grad((torch.stack(boxes) * weights).sum(), weight)
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    print(f"largest difference {largest:.1e}")


def test_inference_reads_the_first_rows_alone(node: CfgNode) -> None:
    model = transformer(node)
    trained = model(*maps()).decoder
    inferred = model.eval()(*maps())
    assert inferred.hybrid is None
    torch.testing.assert_close(inferred.decoder.logits[0], trained.logits[-1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(inferred.decoder.boxes[0], trained.boxes[-1], atol=1e-5, rtol=1e-4)


def test_rank_logits_start_at_zero(node: CfgNode) -> None:
    decoder = build_transformer(node).decoder
    assert not any(head.rank_logits.weight.any() for head in decoder.class_heads)
    assert all(
        mix.content.weight.shape == (NUM_ONE + NUM_MANY, WIDTH) for mix in decoder.rank_contents
    )


def random_layers(num_layers: int = 2, num_queries: int = 7) -> LayerPredictions:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(num_layers, 2, num_queries, NUM_CLASSES, generator=generator)
    boxes = torch.rand(num_layers, 2, num_queries, 4, generator=generator) * 0.5 + 0.2
    return LayerPredictions(logits.requires_grad_(), boxes.requires_grad_())


def corners(box: Tensor) -> list[float]:
    x, y, w, h = box.tolist()
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def overlaps(box: Tensor, other: Tensor) -> tuple[float, float]:
    """IoU and generalised IoU of two CXCYWH boxes, 1e-6 added to both divisors."""
    a, b = corners(box), corners(other)
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(
        0.0, min(a[3], b[3]) - max(a[1], b[1])
    )
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = shared / (union + 1e-6)
    return iou, iou - (hull - union) / (hull + 1e-6)


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_high_order_cost_by_loops(power: float) -> None:
    truth, found = targets(3, 1), random_layers()
    matcher = HighOrderMatcher(
        start_iteration=0, iou_power=power, iteration=lambda: 0, giou_eps=1e-6
    )
    cost = matcher.cost(found, truth)
    assert cost.shape == (2, 2, 7, 3)
    assert not cost.requires_grad
    largest = 0.0
    for layer, image, query in itertools.product(range(2), range(2), range(7)):
        for slot in range(truth.num_boxes[image]):
            p = found.logits[layer, image, query, truth.labels[image, slot]].sigmoid().item()
            iou, _ = overlaps(found.boxes[layer, image, query], truth.boxes[image, slot])
            difference = abs(float(cost[layer, image, query, slot]) + p * iou**power)
            largest = max(largest, difference)
    assert largest < 1e-6
    print(f"largest difference {largest:.1e}")


def test_the_cost_changes_with_the_iteration_of_the_trainer() -> None:
    truth, found = targets(2, 1), random_layers()
    late = HighOrderMatcher(start_iteration=10, giou_eps=1e-6)
    plain = HungarianMatcher(giou_eps=1e-6).cost(found, truth)
    assert training_iteration() == -1
    assert torch.equal(late.cost(found, truth), plain)
    with EventStorage(9) as storage:
        assert torch.equal(late.cost(found, truth), plain)
        storage.step()
        assert training_iteration() == 10
        changed = late.cost(found, truth)
    assert (changed <= 0).all()
    assert not torch.equal(changed, plain)


def test_pairs_without_overlap_are_matched_all_the_same() -> None:
    truth = targets(2, 1)
    far = LayerPredictions(torch.zeros(1, 2, 4, NUM_CLASSES), torch.full((1, 2, 4, 4), 1e-4))
    matcher = HighOrderMatcher(start_iteration=0, iteration=lambda: 0, giou_eps=1e-6)
    matched = matcher.assign(far, truth)
    assert (matched >= 0).sum(dim=-1).tolist() == [[2, 1]]


def class_loss_by_loops(
    layer: LayerPredictions, matched: Tensor, truth: Targets, num_boxes: float
) -> Tensor:
    """The class loss of one layer; `matched` (B, Q) holds slots."""
    total = torch.zeros(())
    for (image, query), slot in zip(
        itertools.product(*map(range, matched.shape)), matched.flatten().tolist(), strict=True
    ):
        for k in range(NUM_CLASSES):
            z = layer.logits[0, image, query, k]
            p = z.sigmoid()
            if slot >= 0 and k == truth.labels[image, slot]:
                _, giou = overlaps(layer.boxes[0, image, query], truth.boxes[image, slot])
                t = torch.tensor((giou + 1) / 2)
                entropy = F.binary_cross_entropy_with_logits(z, t)
                total = total + 0.25 * (t - p).abs() ** 2 * entropy
            else:
                entropy = F.binary_cross_entropy_with_logits(z, torch.tensor(0.0))
                total = total + 0.75 * p**2 * entropy
    return total / num_boxes


@pytest.mark.parametrize("iteration", [67499, 67500])
@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
def test_class_losses_by_loops(node: CfgNode, counts: tuple[int, int], iteration: int) -> None:
    made, truth = build_criterion(node), targets(*counts)
    predictions = transformer(node)(*maps())
    assert predictions.hybrid is not None
    with EventStorage(iteration):
        losses = made(predictions, truth)
        expected = {}
        for branch, repeats, weight, suffix in (
            (predictions.decoder, 1, 1.0, ""),
            (predictions.hybrid.decoder, 3, 0.5, "_o2m"),
        ):
            repeated = truth.repeated(repeats)
            matched = made.criterion.assigner.assign(branch, repeated)
            num_boxes = max(1.0, repeats * sum(counts))
            layers = [
                2
                * weight
                * class_loss_by_loops(
                    LayerPredictions(branch.logits[i : i + 1], branch.boxes[i : i + 1]),
                    matched[i],
                    repeated,
                    num_boxes,
                )
                for i in range(NUM_LAYERS)
            ]
            expected[f"loss_class{suffix}"] = layers[-1]
            expected[f"loss_class_aux{suffix}"] = sum(layers[:-1], torch.zeros(()))
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=1e-5)


def test_proposals_have_the_plain_focal_loss(node: CfgNode) -> None:
    made, truth = build_criterion(node), targets(2, 1)
    predictions = transformer(node)(*maps())
    assert predictions.encoder is not None
    matched = made.criterion.assigner.assign(predictions.encoder, truth.class_agnostic())
    total = 0.0
    for image, query in itertools.product(*map(range, matched.shape[1:])):
        for k in range(NUM_CLASSES):
            p = predictions.encoder.logits[0, image, query, k].sigmoid().item()
            is_present = k == 0 and matched[0, image, query] >= 0
            part = torch.tensor(p if is_present else 1 - p).log().item()
            total -= 0.25 * (1 - p) ** 2 * part if is_present else 0.75 * p**2 * part
    loss = made(predictions, truth)["loss_class_enc"]
    torch.testing.assert_close(loss.item(), 2 * total / 3, rtol=1e-4, atol=1e-5)


def test_both_branches_share_one_criterion(node: CfgNode) -> None:
    made = build_criterion(node)
    assert isinstance(made, HybridCriterion)
    losses = made(transformer(node)(*maps()), targets(2, 1))
    assert not [name for name in losses if name.endswith("_enc_o2m")]
    assert len(losses) == 3 * 5


@pytest.mark.parametrize("epochs", [12, 36])
def test_high_order_matching_begins_after_three_quarters(epochs: int) -> None:
    cfg = get_config(f"RankDETR/rank_detr_R_50_{epochs}ep")
    start = cfg.MODEL.RANK_DETR.HIGH_ORDER_MATCHING.START_ITER
    assert 4 * start == 3 * cfg.SOLVER.MAX_ITER
