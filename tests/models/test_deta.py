# SPDX-License-Identifier: Apache-2.0
"""DETA beside that of transformers 4, the last with one: a small model, weights by formula."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tests.models.comparison import largest_difference
from tests.models.deta_small import (
    NUM_DECODER,
    NUM_DETECTIONS,
    SIZES,
    converter,
    images,
    small_deta,
    targets,
    their_names,
)
from torch import Tensor, nn

from vastdet.detr.structures import SetPredictions
from vastdet.detr.tokens import Tokens, flatten_maps
from vastdet.layers.boxes import cxcywh_to_xyxy
from vastdet.models.deta import DETA
from vastdet.models.deta.proposals import BalancedSelection

EXPECTED = Path(__file__).with_name("deta_expected.json")
NAMES = {"class": "ce", "bbox": "bbox", "giou": "giou"}
WEIGHTS = {"class": 1.0, "bbox": 5.0, "giou": 2.0}


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads(EXPECTED.read_text("utf-8"))


@pytest.fixture
def model(cfg: CfgNode) -> DETA:
    return small_deta(cfg).train()


@pytest.fixture
def predictions(model: DETA) -> SetPredictions:
    return model.predict_padded(images(), targets())


def difference(found: Tensor, wanted: list[Any]) -> float:
    return largest_difference(found, torch.tensor(wanted))


def test_outputs_equal_transformers(predictions: SetPredictions, expected: dict[str, Any]) -> None:
    layers = predictions.decoder
    assert layers.references is not None
    # Measured: references 2.4e-7, logits 7.7e-6, boxes 9.5e-7.
    assert difference(layers.references, expected["references"]) < 2e-6
    assert difference(layers.logits, expected["logits"]) < 3e-5
    assert difference(layers.boxes, expected["boxes"]) < 4e-6


def test_losses_equal_transformers(
    model: DETA, predictions: SetPredictions, expected: dict[str, Any]
) -> None:
    pairs = model.criterion.assigner.pairs(predictions.decoder, targets())
    chosen = pairs.queries[0][pairs.slots[0] >= 0].tolist()
    assert len(set(chosen)) < len(chosen), "a query must answer for two boxes for this to be a test"
    losses = model.criterion(predictions, targets())
    suffixes = {"": [""], "_aux": [f"_{i}" for i in range(NUM_DECODER - 1)], "_enc": ["_enc"]}
    for name, theirs in NAMES.items():
        for suffix, parts in suffixes.items():
            wanted = WEIGHTS[name] * sum(expected["losses"][f"loss_{theirs}{x}"] for x in parts)
            # Measured: 5e-7 of the value.
            found = losses[f"loss_{name}{suffix}"].item()
            assert found == pytest.approx(wanted, rel=5e-6), name + suffix


def test_gradients_equal_transformers(
    model: DETA, predictions: SetPredictions, expected: dict[str, Any]
) -> None:
    sum(model.criterion(predictions, targets()).values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    ours = {pair.source: gradients[pair.detectron2] for pair in converter().pairs}
    norms = {name: gradient.norm().item() for name, gradient in their_names(ours).items()}
    assert norms.keys() == expected["gradient_norms"].keys()
    # Measured: 3e-6 of the norm; some norms are zero but for rounding.
    for name, norm in norms.items():
        assert norm == pytest.approx(expected["gradient_norms"][name], rel=3e-5, abs=2e-5), name


def level_tokens(sizes: list[tuple[int, int]], channels: int = 8) -> Tokens:
    """Two random images of levels of these sizes, without padding."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, channels, *size, generator=generator) for size in sizes]
    masks = [torch.zeros(2, *size, dtype=torch.bool) for size in sizes]
    return flatten_maps(maps, masks, [torch.zeros(2, *size, channels) for size in sizes])


def balanced(**options: Any) -> BalancedSelection:
    torch.manual_seed(0)
    box_head = nn.Linear(8, 4)
    with torch.no_grad():
        box_head.bias[2:] = 2.0  # large boxes that overlap
    return BalancedSelection(8, class_head=nn.Linear(8, 3), box_head=box_head, **options)


def chosen_by_hand(
    scores: Tensor, corners: Tensor, areas: list[int], num_queries: int, per_level: int, iou: float
) -> list[int]:
    survivors: list[tuple[float, int, int]] = []
    start = 0
    for level, area in enumerate(areas):
        ranked = sorted(range(start, start + area), key=lambda i: -scores[i].item())[:per_level]
        start += area
        kept: list[int] = []
        for i in ranked:
            if all(overlap(corners[i], corners[j]) <= iou for j in kept):
                kept.append(i)
        survivors += [(-scores[i].item(), i, level) for i in kept]
    survivors.sort()
    if len(survivors) < num_queries:
        return sorted(range(len(scores)), key=lambda i: -scores[i].item())[:num_queries]
    places = [num_queries // len(areas)] * len(areas)
    first = []
    for _, i, level in survivors:
        if places[level] > 0:
            places[level] -= 1
            first.append(i)
    others = [i for _, i, _ in survivors if i not in first][: num_queries - len(first)]
    return [i for _, i, _ in survivors if i in first or i in others]


def overlap(one: Tensor, other: Tensor) -> float:
    sides = torch.minimum(one[2:], other[2:]) - torch.maximum(one[:2], other[:2])
    shared = sides.clamp(min=0).prod()
    areas = [(box[2:] - box[:2]).prod() for box in (one, other)]
    return (shared / (areas[0] + areas[1] - shared)).item()


@pytest.mark.parametrize(
    ("num_queries", "per_level", "iou", "falls_back"),
    [(13, 40, 0.6, False), (13, 6, 0.6, False), (20, 40, 0.5, False), (50, 10, 0.6, True)],
)
def test_selection_by_loops(num_queries: int, per_level: int, iou: float, falls_back: bool) -> None:
    sizes = [(8, 9), (4, 5), (2, 3)]
    areas = [height * width for height, width in sizes]
    made = balanced(num_queries=num_queries, num_per_level=per_level, nms_threshold=iou)
    selected = made(level_tokens(sizes))
    assert selected.predictions.references is not None
    assert selected.predictions.logits.shape == (1, 2, sum(areas), 3)
    assert selected.boxes.shape == (2, num_queries, 4)
    plain = selected.predictions.logits[0, ..., 0].topk(num_queries, dim=1).indices
    for i in range(2):
        scores = selected.predictions.logits[0, i, :, 0]
        corners = cxcywh_to_xyxy(selected.predictions.boxes[0, i]).clamp(0, 1)
        wanted = chosen_by_hand(scores, corners, areas, num_queries, per_level, iou)
        assert selected.indices[i].tolist() == wanted
        assert (wanted == plain[i].tolist()) == falls_back


def test_references_of_the_proposals_are_the_anchors() -> None:
    selected = balanced(num_queries=4)(level_tokens([(4, 4), (2, 2)]))
    anchors = selected.predictions.references
    assert anchors is not None
    assert anchors[0, 0].tolist() == pytest.approx([0.125, 0.125, 0.05, 0.05])
    assert anchors[1, -1].tolist() == pytest.approx([0.75, 0.75, 0.1, 0.1])
    assert not anchors.requires_grad


def test_contents_give_no_gradient_to_the_encoder(model: DETA) -> None:
    levels, masks = model.padded_levels(images())
    source = model.transformer.query_source
    memory = model.transformer.to_tokens(levels, masks)
    values = memory.values.detach().requires_grad_()
    queries, _ = source(memory.with_values(values))
    assert queries.content.requires_grad  # by the parameters
    assert torch.autograd.grad(queries.content.sum(), values, allow_unused=True) == (None,)


def test_detections_equal_transformers(
    model: DETA, predictions: SetPredictions, expected: dict[str, Any]
) -> None:
    found = model.detections(predictions.decoder, SIZES)
    for image, wanted in zip(found, expected["detections"], strict=True):
        assert image.pred_classes.tolist() == wanted["labels"]
        # Measured: scores 3e-7, boxes 2.4e-4 pixels.
        assert difference(image.scores, wanted["scores"]) < 2e-6
        assert difference(image.pred_boxes.tensor, wanted["boxes"]) < 1e-3
    best = predictions.decoder.logits[-1].sigmoid().flatten(1).topk(NUM_DETECTIONS).values
    assert all(image.scores.sum() < scores.sum() for image, scores in zip(found, best, strict=True))


def test_config_keys_reach_the_parts(cfg: CfgNode) -> None:
    cfg.MODEL.META_ARCHITECTURE = "DETA"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.DETA.NMS_THRESH_TEST = 0.65
    cfg.MODEL.DETA.PROPOSALS.NUM_PER_LEVEL = 300
    cfg.MODEL.DETA.PROPOSALS.NMS_THRESH = 0.85
    cfg.MODEL.DETA.ASSIGNER.MAX_PER_BOX = 3
    with torch.device("meta"):
        model = build_model(cfg)
    assert model.select_detections.keywords == {"nms_threshold": 0.65}
    selection = model.transformer.query_source.selection
    assert (selection.num_per_level, selection.nms_threshold) == (300, 0.85)
    assigners = (model.criterion.proposal_assigner, model.criterion.assigner)
    assert [x.max_positives for x in assigners] == [128, 225]
    assert [x.max_per_box for x in assigners] == [3, 3]
    assert [x.matcher.thresholds[1] for x in assigners] == [0.7, 0.6]
