# SPDX-License-Identifier: Apache-2.0
"""Relation-DETR written down step by step, from the description of the authors' code.

Takes the parameters of our modules, but none of their ways: relations hold the features of all
pairs, attention is torch's, losses loop over layers and images.
"""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from vastdet.detr.decoder import Decoder, QueryState
from vastdet.detr.query_selection import token_proposals
from vastdet.detr.structures import LayerPredictions, Targets
from vastdet.detr.tokens import Tokens
from vastdet.models.relation_detr.relation import PositionRelation
from vastdet.models.relation_detr.transformer import RelationTransformer

Losses = dict[str, Tensor]


def waves(x: Tensor, num_features: int, scale: float) -> Tensor:
    """Sine and cosine in turns of each entry of x (...), as (..., num_features)."""
    features = []
    for k in range(num_features // 2):
        angle = x * scale / 10000 ** (2 * k / num_features)
        features += [angle.sin(), angle.cos()]
    return torch.stack(features, dim=-1)


@torch.no_grad()
def pair_features(sources: Tensor, targets: Tensor) -> Tensor:
    """(B, N, M, 64) features of all pairs of boxes (B, N, 4) and (B, M, 4)."""
    s, t = sources[:, :, None], targets[:, None]
    parts = [torch.log((s[..., i] - t[..., i]).abs() / (s[..., 2 + i] + 1e-5) + 1) for i in (0, 1)]
    parts += [torch.log((s[..., i] + 1e-5) / (t[..., i] + 1e-5)) for i in (2, 3)]
    return torch.cat([waves(part, 16, 100.0) for part in parts], dim=-1)


def bias_of(relation: PositionRelation, sources: Tensor, targets: Tensor) -> Tensor:
    """(B, H, N, M), in the number format of the boxes."""
    weight = relation.projection.weight[:, :, 0, 0].to(sources.dtype)
    bias = relation.projection.bias.to(sources.dtype)
    return F.linear(pair_features(sources, targets), weight, bias).relu().permute(0, 3, 1, 2)


def logit(x: Tensor) -> Tensor:
    return torch.log(x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3))


def run_decoder(
    decoder: Decoder,
    content: Tensor,
    boxes: Tensor,
    memory: Tokens,
    *,
    blocked: Tensor | None = None,
    relation: PositionRelation | None = None,
) -> LayerPredictions:
    """All layers, one after the other."""
    batch, num_queries, width = content.shape
    all_logits, all_boxes, predicted = [], [], [boxes]
    reference = boxes
    for i, layer in enumerate(decoder.layers):
        ratio = torch.cat([memory.valid_ratios[:, :1]] * 2, dim=-1)
        scaled = reference.detach() * ratio
        features = [waves(scaled[..., c], width // 2, 2 * math.pi) for c in (1, 0, 2, 3)]
        position = decoder.query_position.ref_point_head(torch.cat(features, dim=-1))
        if i > 0:
            position = position * decoder.query_position.query_scale(content)

        heads = layer.self_attn.num_heads
        mask = content.new_zeros(batch, heads, num_queries, num_queries)
        if relation is not None and i > 0:
            mask = bias_of(relation, predicted[-2], predicted[-1])
        if blocked is not None:
            mask = mask.masked_fill(blocked, -math.inf)
        attention = nn.MultiheadAttention(width, heads, batch_first=True)
        state = dict(layer.self_attn.named_parameters())
        query = content + position
        attended, _ = torch.func.functional_call(
            attention, state, (query, query, content), {"attn_mask": mask.flatten(0, 1)}
        )
        content = layer.self_attn_norm(content + attended)
        sampled = layer.cross_attn(QueryState(content, position, reference.detach()), memory)
        content = layer.cross_attn_norm(content + sampled)
        content = layer.ffn_norm(content + layer.ffn(content))

        normed, head = decoder.norm(content), decoder.box_heads[i]
        all_logits.append(decoder.class_heads[i](normed))
        all_boxes.append((head(normed) + logit(reference)).sigmoid())
        predicted.append(all_boxes[-1].detach())
        reference = (head(content) + logit(reference.detach())).sigmoid()
    return LayerPredictions(torch.stack(all_logits), torch.stack(all_boxes))


def choose(
    transformer: RelationTransformer, memory: Tokens, *, one_to_many: bool
) -> tuple[Tensor, Tensor, LayerPredictions]:
    """Content and boxes of the queries of a branch, and what is proposed for them."""
    output = transformer.query_source.selection
    source = transformer.one_to_many_source if one_to_many else transformer.query_source
    proposals, valid = token_proposals(memory)
    features = output.output_norm(output.output(memory.values * valid[..., None]))
    logits = source.selection.class_head(features)
    boxes = (source.selection.box_head(features) + proposals).sigmoid()
    chosen_logits, chosen_boxes = [], []
    for image in range(len(features)):
        best = logits[image].amax(dim=-1).sort(descending=True, stable=True).indices
        best = best[: len(source.content.weight)]
        chosen_logits.append(logits[image, best])
        chosen_boxes.append(boxes[image, best])
    predictions = LayerPredictions(
        torch.stack(chosen_logits)[None], torch.stack(chosen_boxes)[None]
    )
    content = torch.stack([source.content.weight] * len(features))
    return content, predictions.boxes[0].detach(), predictions


def pair_losses(
    logits: Tensor, boxes: Tensor, labels: Tensor, gt_boxes: Tensor, pairs: list[tuple[int, int]]
) -> Losses:
    """Sums over the queries of one image; a pair is a query and its box."""
    target, weight = torch.zeros_like(logits), 0.75 * logits.detach().sigmoid() ** 2
    l1, giou = [boxes.sum() * 0], [boxes.sum() * 0]
    for query, slot in pairs:
        one, other = (
            box_convert(x[None], "cxcywh", "xyxy") for x in (boxes[query], gt_boxes[slot])
        )
        target[query, labels[slot]] = weight[query, labels[slot]] = box_iou(one, other).item()
        l1.append((boxes[query] - gt_boxes[slot]).abs().sum())
        giou.append(1 - generalized_box_iou(one, other)[0, 0])
    entropy = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
    return {"class": entropy, "bbox": 5 * sum(l1), "giou": 2 * sum(giou)}


def match(logits: Tensor, boxes: Tensor, labels: Tensor, gt_boxes: Tensor) -> list[tuple[int, int]]:
    """Pairs of least cost of one image."""
    p = logits.detach().sigmoid()[:, labels]
    cost = 0.25 * (1 - p) ** 2 * -(p + 1e-6).log() - 0.75 * p**2 * -(1 - p + 1e-6).log()
    corners = [box_convert(x.detach(), "cxcywh", "xyxy") for x in (boxes, gt_boxes)]
    cost = 2 * cost + 5 * torch.cdist(boxes.detach(), gt_boxes, p=1)
    return list(zip(*linear_sum_assignment(cost - 2 * generalized_box_iou(*corners)), strict=True))


def losses_of(
    layers: LayerPredictions, targets: Targets, *, repeats: int = 1, num_groups: int = 0
) -> list[Losses]:
    """Weighted losses of each layer; with groups, of denoising queries, else matched anew."""
    num_boxes = max(sum(targets.num_boxes) * repeats, 1) * max(num_groups, 1)
    results = []
    for logits, boxes in zip(layers.logits, layers.boxes, strict=True):
        total: Losses = {}
        for i, count in enumerate(targets.num_boxes):
            labels = targets.labels[i, :count].repeat(repeats)
            gt_boxes = targets.boxes[i, :count].repeat(repeats, 1)
            size = 2 * max(targets.num_boxes)
            pairs = [(g * size + t, t) for g in range(num_groups) for t in range(count)]
            if not num_groups:
                pairs = match(logits[i], boxes[i], labels, gt_boxes)
            for name, loss in pair_losses(logits[i], boxes[i], labels, gt_boxes, pairs).items():
                total[name] = total.get(name, torch.zeros(())) + loss / num_boxes
        results.append(total)
    return results
