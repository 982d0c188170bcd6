# SPDX-License-Identifier: Apache-2.0
"""CQ-DINO written down step by step, from a description of the authors' code, on their names.

Functions of a state dict and plain tensors: nothing of ours is used. Attention is products and
softmaxes, sampling is `grid_sample`, matches and losses are loops over layers and images. Weights
of dropout are not dropped.

B images, C categories, K selected ones, Q queries, S cells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.models.swin_reference import State, by_head, count, joined, linear, norm, swin
from torch import Tensor
from torch.nn import functional as F

NUM_HEADS = 8
NUM_POINTS = 4
FUSION_HEADS = 4
TAGGING_HEADS = 4
NUM_V3DET = 13204


@dataclass
class Tree:
    """What their file says of the categories: level from 1, direct children, ancestors."""

    level: list[int]
    children: list[list[int]]
    ancestors: list[list[int]] = field(default_factory=list)


def neck(state: State, maps: Sequence[Tensor]) -> list[Tensor]:
    """Levels (B, 256, H, W): one a map, and one more."""
    levels = []
    for i, m in enumerate([*maps, maps[-1]]):
        name = f"neck.convs.{i}" if i < len(maps) else "neck.extra_convs.0"
        weight, bias = state[f"{name}.conv.weight"], state[f"{name}.conv.bias"]
        extra = {"stride": 2, "padding": 1} if i == len(maps) else {}
        m = F.conv2d(m, weight, bias, **extra)
        levels.append(F.group_norm(m, 32, state[f"{name}.gn.weight"], state[f"{name}.gn.bias"]))
    return levels


# The side of the categories.


def tree_weight(num_descendants: int) -> float:
    return 0.4 + 0.4 * math.log(2 + num_descendants) / math.log(2 + NUM_V3DET)


def num_descendants(tree: Tree, category: int) -> int:
    return sum(1 + num_descendants(tree, child) for child in tree.children[category])


def mix_tree(tree: Tree, queries: Tensor) -> Tensor:
    """Parents of a level at once, from the deepest; levels from 7 on are one."""
    level = [min(number, 7) for number in tree.level]
    for current in sorted(set(level), reverse=True):
        before = queries.clone()
        queries = before.clone()
        for category, children in enumerate(tree.children):
            if children and level[category] == current:
                weight = tree_weight(num_descendants(tree, category))
                mean = torch.stack([before[child] for child in children]).mean(dim=0)
                queries[category] = (1 - weight) * before[category] + weight * mean
    return queries


def label_attention(state: State, queries: Tensor) -> Tensor:
    """Attention over a sequence of length 1: what is left is the value."""
    name = "language_model.label_attn"
    width = queries.shape[-1]
    weight = state[f"{name}.self_attn.in_proj_weight"][2 * width :]
    value = F.linear(queries, weight, state[f"{name}.self_attn.in_proj_bias"][2 * width :])
    return norm(state, f"{name}.norm", queries + linear(state, f"{name}.self_attn.out_proj", value))


def tag(state: State, features: Tensor, tree: Tree | None) -> tuple[Tensor, Tensor]:
    """Categories that have seen the last map (B, F, H, W): (B, C, 768), and their logits (B, C)."""
    model = "language_model"
    queries = linear(state, f"{model}.wordvec_proj", state[f"{model}.label_embed"]).relu()
    if tree is None:
        queries = label_attention(state, queries)
    else:
        queries = norm(state, f"{model}.label_norm", mix_tree(tree, queries))
    cells = features.flatten(2).transpose(1, 2)
    tokens = torch.cat([features.mean(dim=(2, 3))[:, None], cells], dim=1)
    tokens = linear(state, f"{model}.image_proj", tokens)
    x = queries.expand(len(features), -1, -1)
    for i in range(count(state, f"{model}.tagging_head.encoder.layer.")):
        layer = f"{model}.tagging_head.encoder.layer.{i}"
        q, k, v = (
            by_head(linear(state, f"{layer}.crossattention.self.{part}", source), TAGGING_HEADS)
            for part, source in (("query", x), ("key", tokens), ("value", tokens))
        )
        seen = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        seen = linear(state, f"{layer}.crossattention.output.dense", joined(seen))
        x = norm(state, f"{layer}.crossattention.output.LayerNorm", x + seen, 1e-12)
        hidden = F.gelu(linear(state, f"{layer}.intermediate.dense", x))
        hidden = linear(state, f"{layer}.output.dense", hidden)
        x = norm(state, f"{layer}.output.LayerNorm", x + hidden, 1e-12)
    return x, linear(state, f"{model}.fc", x)[..., 0]


# The detector.


def sine(x: Tensor, num_features: int, temperature: float) -> Tensor:
    """Sine and cosine in turns of each number of x (...), as (..., num_features)."""
    features = []
    for i in range(num_features):
        angle = x / temperature ** (2 * (i // 2) / num_features)
        features.append(angle.cos() if i % 2 else angle.sin())
    return torch.stack(features, dim=-1)


def position_of_cells(mask: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """(B, H * W, C) of masks (B, H, W), True at padding: the half of y, then that of x."""
    valid = (~mask).to(dtype)
    halves = []
    for axis in (1, 2):
        place = valid.cumsum(axis)
        place = place / (place.select(axis, -1).unsqueeze(axis) + 1e-6) * 2 * math.pi
        halves.append(sine(place, width // 2, 20.0))
    return torch.cat(halves, dim=-1).flatten(1, 2)


@dataclass
class Cells:
    """All levels, one after the other."""

    values: Tensor
    positions: Tensor
    mask: Tensor
    sizes: list[tuple[int, int]]
    ratios: Tensor  # (B, L, 2), width first

    @property
    def split(self) -> list[int]:
        return [height * width for height, width in self.sizes]


def to_cells(state: State, levels: Sequence[Tensor], image_mask: Tensor) -> Cells:
    values, positions, masks, ratios = [], [], [], []
    for i, level in enumerate(levels):
        mask = F.interpolate(image_mask[None].float(), size=level.shape[-2:])[0].bool()
        values.append(level.flatten(2).transpose(1, 2))
        encoded = position_of_cells(mask, level.shape[1], level.dtype)
        positions.append(encoded + state["level_embed"][i])
        masks.append(mask.flatten(1))
        valid = (~mask).to(level.dtype)
        ratios.append(torch.stack([valid[:, 0].mean(1), valid[:, :, 0].mean(1)], dim=-1))
    sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
    joined_parts = (torch.cat(x, dim=1) for x in (values, positions, masks))
    return Cells(*joined_parts, sizes, torch.stack(ratios, dim=1))


def centers(cells: Cells) -> Tensor:
    """(B, S, 2), as shares of the area that is no padding."""
    found = []
    for level, (height, width) in enumerate(cells.sizes):
        y, x = torch.meshgrid(
            torch.arange(height).to(cells.values) + 0.5,
            torch.arange(width).to(cells.values) + 0.5,
            indexing="ij",
        )
        grid = torch.stack([x.flatten() / width, y.flatten() / height], dim=-1)
        found.append(grid[None] / cells.ratios[:, None, level])
    return torch.cat(found, dim=1)


def sample(state: State, name: str, query: Tensor, references: Tensor, cells: Cells) -> Tensor:
    """Deformable attention about references (B, Q, L, 2 or 4)."""
    batch, num_queries, width = query.shape
    num_levels = len(cells.sizes)
    value = linear(state, f"{name}.value_proj", cells.values)
    value = value.masked_fill(cells.mask[..., None], 0)
    shape = (batch, num_queries, NUM_HEADS, num_levels, NUM_POINTS)
    offsets = linear(state, f"{name}.sampling_offsets", query).view(*shape, 2)
    weights = linear(state, f"{name}.attention_weights", query).view(*shape[:3], -1).softmax(-1)
    weights = weights.view(shape)
    total = query.new_zeros(batch * NUM_HEADS, width // NUM_HEADS, num_queries)
    for level, (rows, level_value) in enumerate(
        zip(cells.sizes, value.split(cells.split, dim=1), strict=True)
    ):
        reference = references[:, :, level, None, None]
        if references.shape[-1] == 2:
            step = offsets[:, :, :, level] / query.new_tensor([rows[1], rows[0]])
        else:
            step = offsets[:, :, :, level] / NUM_POINTS * reference[..., 2:] * 0.5
        place = (reference[..., :2] + step).transpose(1, 2).flatten(0, 1) * 2 - 1
        maps = by_head(level_value, NUM_HEADS).transpose(-1, -2).flatten(0, 1)
        maps = maps.view(*maps.shape[:2], *rows)
        sampled = F.grid_sample(maps, place, align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        total = total + (sampled * weight[:, None]).sum(-1)
    total = total.view(batch, NUM_HEADS, -1, num_queries).permute(0, 3, 1, 2).flatten(2)
    return linear(state, f"{name}.output_proj", total)


def fuse(state: State, name: str, cells: Cells, text: Tensor) -> tuple[Tensor, Tensor]:
    """New cells (B, S, 256) and categories (B, K, 256)."""
    image = norm(state, f"{name}.layer_norm_v", cells.values)
    text = norm(state, f"{name}.layer_norm_l", text)
    parts = {
        part: by_head(linear(state, f"{name}.attn.{part}", source), FUSION_HEADS)
        for part, source in (
            ("v_proj", image),
            ("l_proj", text),
            ("values_v_proj", image),
            ("values_l_proj", text),
        )
    }
    scale = parts["v_proj"].shape[-1] ** -0.5
    scores = (parts["v_proj"] * scale) @ parts["l_proj"].transpose(-1, -2)
    scores = scores.clamp(-50000, 50000)
    of_image = scores.transpose(-1, -2)
    of_image = of_image - of_image.max(dim=-1, keepdim=True).values
    of_image = of_image.masked_fill(cells.mask[:, None, None], -math.inf)
    to_image = joined(scores.softmax(-1) @ parts["values_l_proj"])
    to_text = joined(of_image.softmax(-1) @ parts["values_v_proj"])
    image_delta = linear(state, f"{name}.attn.out_v_proj", to_image)
    text_delta = linear(state, f"{name}.attn.out_l_proj", to_text)
    return image + state[f"{name}.gamma_v"] * image_delta, text + state[f"{name}.gamma_l"] * (
        text_delta
    )


def feed_forward(state: State, name: str, x: Tensor) -> Tensor:
    hidden = linear(state, f"{name}.ffn.layers.0.0", x).relu()
    return x + linear(state, f"{name}.ffn.layers.1", hidden)


def encode(state: State, cells: Cells, text: Tensor) -> Tensor:
    """Change the cells in place; return the categories."""
    references = centers(cells)[:, :, None] * cells.ratios[:, None]
    for i in range(count(state, "encoder.layers.")):
        layer = f"encoder.layers.{i}"
        cells.values, text = fuse(state, f"encoder.fusion_layers.{i}", cells, text)
        query = cells.values + cells.positions
        seen = sample(state, f"{layer}.self_attn", query, references, cells)
        x = norm(state, f"{layer}.norms.0", cells.values + seen)
        cells.values = norm(state, f"{layer}.norms.1", feed_forward(state, layer, x))
    return text


def box_branch(state: State, index: int, x: Tensor) -> Tensor:
    name = f"bbox_head.reg_branches.{index}"
    x = linear(state, f"{name}.2", linear(state, f"{name}.0", x).relu()).relu()
    return linear(state, f"{name}.4", x)


def contrast(state: State, index: int, x: Tensor, text: Tensor) -> Tensor:
    scores = x @ text.transpose(-1, -2) / math.sqrt(x.shape[-1])
    return scores + state[f"bbox_head.cls_branches.{index}.bias"]


def logit(x: Tensor, eps: float) -> Tensor:
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def propose(state: State, cells: Cells, text: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Logits (B, Q, K) and boxes (B, Q, 4), with gradient, of the best cells."""
    places = centers(cells)
    sizes = torch.cat(
        [places.new_full((area, 2), 0.05 * 2.0**level) for level, area in enumerate(cells.split)]
    )
    boxes = torch.cat([places, sizes.expand_as(places)], dim=-1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~cells.mask
    offered = torch.log(boxes / (1 - boxes)).masked_fill(~valid[..., None], math.inf)
    memory = cells.values.masked_fill(~valid[..., None], 0)
    memory = norm(state, "memory_trans_norm", linear(state, "memory_trans_fc", memory))
    scores = contrast(state, index, memory, text)
    moved = box_branch(state, index, memory) + offered
    num_queries = len(state["query_embedding.weight"])
    best = scores.max(-1).values.topk(num_queries, dim=1).indices
    chosen = torch.stack([scores[b, rows] for b, rows in enumerate(best)])
    return chosen, torch.stack([moved[b, rows] for b, rows in enumerate(best)]).sigmoid()


def attention(
    state: State, name: str, q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None = None
) -> Tensor:
    weights = state[f"{name}.in_proj_weight"].chunk(3)
    biases = state[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (
        by_head(F.linear(x, w, b), NUM_HEADS)
        for x, w, b in zip((q, k, v), weights, biases, strict=True)
    )
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if blocked is not None:
        scores = scores.masked_fill(blocked, -math.inf)
    return linear(state, f"{name}.out_proj", joined(scores.softmax(-1) @ v))


def decode(
    state: State,
    cells: Cells,
    text: Tensor,
    content: Tensor,
    boxes: Tensor,
    blocked: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Logits (N, B, Q, K) and boxes (N, B, Q, 4) of all layers."""
    all_logits, all_boxes = [], []
    reference, previous = boxes, boxes
    width = content.shape[-1]
    for i in range(count(state, "decoder.layers.")):
        layer = f"decoder.layers.{i}"
        ratios = cells.ratios.repeat(1, 1, 2)
        place = reference * ratios[:, None, 0] * 2 * math.pi
        encoded = torch.cat([sine(place[..., c], width // 2, 1e4) for c in (1, 0, 2, 3)], dim=-1)
        position = linear(state, "decoder.ref_point_head.layers.0", encoded).relu()
        position = linear(state, "decoder.ref_point_head.layers.1", position)
        query = content + position
        seen = attention(state, f"{layer}.self_attn.attn", query, query, content, blocked)
        content = norm(state, f"{layer}.norms.0", content + seen)
        query = content + position
        seen = attention(state, f"{layer}.cross_attn_text.attn", query, text, text)
        content = norm(state, f"{layer}.norms.1", content + seen)
        references = reference[:, :, None] * ratios[:, None]
        seen = sample(state, f"{layer}.cross_attn", content + position, references, cells)
        content = norm(state, f"{layer}.norms.2", content + seen)
        content = norm(state, f"{layer}.norms.3", feed_forward(state, layer, content))
        normed = norm(state, "decoder.norm", content)
        all_logits.append(contrast(state, i, normed, text))
        all_boxes.append((box_branch(state, i, normed) + logit(previous, 1e-5)).sigmoid())
        previous = (box_branch(state, i, content) + logit(reference, 1e-3)).sigmoid()
        reference = previous.detach()
    return torch.stack(all_logits), torch.stack(all_boxes)


def detect(
    state: State,
    images: Sequence[Tensor],
    *,
    window: int,
    heads: Sequence[int],
    num_selected: int,
    tree: Tree | None,
    denoising: tuple[Tensor, Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """Everything of a batch of normalised images (3, H, W).

    `denoising` holds content, boxes and what is blocked, of the queries before the others.
    """
    height, width = (max(x.shape[i] for x in images) for i in (-2, -1))
    batch = images[0].new_zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        batch[i, :, : image.shape[-2], : image.shape[-1]] = image
        mask[i, : image.shape[-2], : image.shape[-1]] = False
    maps = swin(state, batch, window, heads)
    seen, scores = tag(state, maps[-1], tree)
    chosen = scores.topk(num_selected, dim=1).indices
    text = torch.stack([seen[b, rows] for b, rows in enumerate(chosen)])
    text = linear(state, "text_feat_map", text)
    cells = to_cells(state, neck(state, maps), mask)
    text = encode(state, cells, text)
    logits, proposed = propose(state, cells, text, count(state, "decoder.layers."))
    content = state["query_embedding.weight"].expand(len(images), -1, -1)
    boxes, blocked = proposed.detach(), None
    if denoising is not None:
        content = torch.cat([denoising[0], content], dim=1)
        boxes = torch.cat([denoising[1], boxes], dim=1)
        blocked = denoising[2]
    all_logits, all_boxes = decode(state, cells, text, content, boxes, blocked)
    return {
        "scores": scores,
        "chosen": chosen,
        "text": text,
        "memory": cells.values,
        "encoder": (logits, proposed),
        "decoder": (all_logits, all_boxes),
    }
