# SPDX-License-Identifier: Apache-2.0
"""The losses and the denoising queries of CQ-DINO, from a description of the authors' code.

Loops over layers, images and boxes; boxes are CXCYWH as shares of the image, GIoU is in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from tests.models.cq_dino_reference_model import Tree, logit
from tests.models.swin_reference import State
from torch import Tensor
from torch.nn import functional as F

IOU_EPS = 1e-6  # of pixels


@dataclass
class Truth:
    """The boxes of one image."""

    boxes: Tensor  # (G, 4)
    labels: list[int]
    size: tuple[int, int]  # height, width

    def pixels(self, boxes: Tensor) -> Tensor:
        """CXCYWH shares to corners in pixels."""
        height, width = self.size
        scale = boxes.new_tensor([width, height])
        center, half = boxes[..., :2] * scale, boxes[..., 2:] * scale / 2
        return torch.cat([center - half, center + half], dim=-1)


def giou(one: Tensor, other: Tensor) -> Tensor:
    """Of two boxes (4,), corners in pixels."""

    def area(box: Tensor) -> Tensor:
        return (box[2] - box[0]).clamp(min=0) * (box[3] - box[1]).clamp(min=0)

    shared = torch.cat([torch.maximum(one[:2], other[:2]), torch.minimum(one[2:], other[2:])])
    hull = torch.cat([torch.minimum(one[:2], other[:2]), torch.maximum(one[2:], other[2:])])
    union = (area(one) + area(other) - area(shared)).clamp(min=IOU_EPS)
    around = area(hull).clamp(min=IOU_EPS)
    return area(shared) / union - (around - union) / around


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """The sum over all entries."""
    p = logits.sigmoid()
    weight = (0.25 * target + 0.75 * (1 - target)) * (target * (1 - p) + (1 - target) * p) ** 2
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (entropy * weight).sum()


def match(logits: Tensor, boxes: Tensor, truth: Truth, ranks: list[int]) -> list[tuple[int, int]]:
    """Pairs of a query and a box of one image."""
    if not ranks:
        return []
    p = logits.sigmoid()
    positive = -(p + 1e-12).log() * 0.25 * (1 - p) ** 2
    negative = -(1 - p + 1e-12).log() * 0.75 * p**2
    cost = torch.zeros(len(logits), len(ranks))
    for g, rank in enumerate(ranks):
        target = torch.zeros_like(p[0])
        if rank >= 0:
            target[rank] = 1
        gt = truth.boxes[g]
        for q in range(len(logits)):
            of_class = (positive[q] * target + negative[q] * (1 - target)).sum()
            of_box = (boxes[q] - gt).abs().sum()
            overlap = giou(truth.pixels(boxes[q]), truth.pixels(gt))
            cost[q, g] = 2 * of_class + 5 * of_box - 2 * overlap
    return list(zip(*linear_sum_assignment(cost.numpy()), strict=True))


def layer_losses(
    logits: Tensor,
    boxes: Tensor,
    truths: Sequence[Truth],
    ranks: Sequence[list[int]],
    pairs: Sequence[list[tuple[int, int]]],
    num_positives: int,
) -> dict[str, Tensor]:
    """Of one layer, of all images."""
    total = {k: logits.new_zeros(()) for k in ("class", "bbox", "giou")}
    for b, truth in enumerate(truths):
        target = torch.zeros_like(logits[b])
        for q, g in pairs[b]:
            if ranks[b][g] >= 0:
                target[q, ranks[b][g]] = 1
            gt = truth.boxes[g]
            total["bbox"] = total["bbox"] + 5 * (boxes[b, q] - gt).abs().sum()
            overlap = giou(truth.pixels(boxes[b, q]), truth.pixels(gt))
            total["giou"] = total["giou"] + 2 * (1 - overlap)
        total["class"] = total["class"] + focal(logits[b], target)
    return {k: x / max(num_positives, 1) for k, x in total.items()}


@dataclass
class Noised:
    """Denoising queries, and where the positives of each group stand."""

    content: Tensor
    boxes: Tensor
    blocked: Tensor
    pairs: list[list[tuple[int, int]]]
    num_groups: int


def make_noised(
    state: State,
    truths: Sequence[Truth],
    num_queries: int,
    drawn: tuple[Tensor, Tensor, Tensor],
    num_matching: int,
) -> Noised:
    """Groups of positives and negatives, from drawn flips, labels and moves.

    The draws are (B, group, 0 for positives and 1 for negatives, slot, ...).
    """
    flips, others, moves = drawn
    most = max(len(truth.labels) for truth in truths)
    groups = max(1, num_queries // most)
    width = state["dn_query_generator.label_embedding.weight"].shape[1]
    total = 2 * most * groups
    content = truths[0].boxes.new_zeros(len(truths), total, width)
    logits = truths[0].boxes.new_zeros(len(truths), total, 4)
    pairs: list[list[tuple[int, int]]] = [[] for _ in truths]
    for group in range(groups):
        for kind in (0, 1):
            for b, truth in enumerate(truths):
                prompt = list(dict.fromkeys(truth.labels))
                for g, label in enumerate(truth.labels):
                    place = (2 * group + kind) * most + g
                    index = prompt.index(label)
                    if flips[b, group, kind, g]:
                        index = int(others[b, group, kind, g])
                    content[b, place] = state["dn_query_generator.label_embedding.weight"][index]
                    cx, cy, w, h = truth.boxes[g]
                    corners = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
                    reach = torch.stack([w, h, w, h]) / 2
                    x0, y0, x1, y1 = (corners + moves[b, group, kind, g] * reach).clamp(0, 1)
                    box = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
                    logits[b, place] = logit(box, 1e-3)
                    if kind == 0:
                        pairs[b].append((place, g))
    owner = torch.arange(total) // (2 * most)
    blocked = torch.zeros(total + num_matching, total + num_matching, dtype=torch.bool)
    blocked[:total, :total] = owner[:, None] != owner
    blocked[total:, :total] = True
    return Noised(content, logits.sigmoid(), blocked, pairs, groups)


def selection_loss(scores: Tensor, truths: Sequence[Truth], tree: Tree | None) -> Tensor:
    """The asymmetric loss with a tree; without, cross-entropy with the weight 0.1."""
    target = torch.zeros_like(scores)
    for b, truth in enumerate(truths):
        target[b, truth.labels] = 1
    gamma_negative, clip, weight = (7, 0.05, 1.0) if tree is not None else (0, 0.0, 0.1)
    if tree is not None:
        kept = torch.ones_like(scores)
        for b, truth in enumerate(truths):
            above = {a for label in truth.labels for a in tree.ancestors[label]}
            kept[b, sorted(above - set(truth.labels))] = 0
        scores, target = scores * kept, target * kept
    p = scores.clamp(-88, 88).sigmoid()
    q = 1 - p
    if clip:
        q = (q + clip).clamp(max=1)
    loss = target * p.clamp(1e-8, 1).log() + (1 - target) * q.clamp(1e-8, 1).log()
    if gamma_negative:
        right = (p * target + q * (1 - target)).detach()
        loss = loss * (1 - right) ** (gamma_negative * (1 - target))
    return -weight * loss.sum()


def all_losses(
    found: dict, truths: Sequence[Truth], tree: Tree | None, noised: Noised
) -> dict[str, Tensor]:
    """Every term, under our names; layers but the last are added up, and those of denoising."""
    num_positives = sum(len(truth.labels) for truth in truths)
    ranks = [
        [chosen.tolist().index(k) if k in chosen else -1 for k in truth.labels]
        for chosen, truth in zip(found["chosen"], truths, strict=True)
    ]
    losses = {"loss_selection": selection_loss(found["scores"], truths, tree)}
    start = noised.content.shape[1]
    logits, boxes = found["decoder"]
    layers = [(x[:, start:], y[:, start:]) for x, y in zip(logits, boxes, strict=True)]
    for i, (x, y) in enumerate([*layers, found["encoder"]]):
        ending = ("_aux" if i < len(layers) - 1 else "") if i < len(layers) else "_enc"
        pairs = [
            match(x[b].detach(), y[b].detach(), truth, ranks[b]) for b, truth in enumerate(truths)
        ]
        of_layer = layer_losses(x, y, truths, ranks, pairs, num_positives)
        for name, loss in of_layer.items():
            key = f"loss_{name}{ending}"
            losses[key] = losses.get(key, 0) + loss
    for x, y in zip(logits[:, :, :start], boxes[:, :, :start], strict=True):
        of_layer = layer_losses(
            x, y, truths, ranks, noised.pairs, num_positives * noised.num_groups
        )
        for name, loss in of_layer.items():
            losses[f"loss_{name}_dn"] = losses.get(f"loss_{name}_dn", 0) + loss
    return losses
