# SPDX-License-Identifier: Apache-2.0
"""Relation-DETR beside a plain account of the authors' code: outputs, losses, gradients.

In float64: relations turn rounding of close boxes into as much as a thousand times more.
"""

import pytest
import torch
from detectron2.config import CfgNode
from tests.models.relation_detr_reference import choose, losses_of, run_decoder
from torch import Tensor, nn

from vastdet.detr.hybrid import HybridCriterion
from vastdet.detr.structures import LayerPredictions, SetPredictions, Targets
from vastdet.detr.tokens import Tokens, resize_mask
from vastdet.models.relation_detr.relation_detr import build_criterion, build_transformer
from vastdet.models.relation_detr.transformer import FusedEncoder, RelationTransformer

WIDTH, NUM_CLASSES = 32, 5
SIZES = [(12, 16), (6, 8), (3, 4)]


def parts(
    cfg: CfgNode, *, num_one_to_many: int = 20
) -> tuple[RelationTransformer, HybridCriterion]:
    torch.manual_seed(0)
    node = cfg.MODEL.RELATION_DETR
    node.NUM_CLASSES, node.NUM_LEVELS, node.NUM_QUERIES = NUM_CLASSES, 3, 14
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = WIDTH, 4, 48
    node.NUM_ENCODER_LAYERS, node.NUM_DECODER_LAYERS = 2, 3
    node.ONE_TO_MANY.NUM_QUERIES, node.ONE_TO_MANY.NUM_REPEATS = num_one_to_many, 3
    node.DENOISING.NUM_QUERIES = 6
    transformer = build_transformer(node)
    for name, parameter in transformer.named_parameters():
        if ".box_head" in name or "sampling_offsets" in name or "attention_weights" in name:
            nn.init.normal_(parameter, std=0.3)
    return transformer.double(), build_criterion(node)


def maps() -> tuple[list[Tensor], list[Tensor]]:
    """Levels of two images, the second of which is padded."""
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, WIDTH, *size, generator=generator).double() for size in SIZES]
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, 70:] = mask[1, :, 100:] = True
    return levels, [resize_mask(mask, size) for size in SIZES]


def make_targets(counts: tuple[int, int]) -> Targets:
    generator = torch.Generator().manual_seed(2)
    slots = max(1, *counts)
    corners = torch.rand(2, slots, 2, generator=generator) * 0.5 + 0.25
    boxes = torch.cat([corners, 0.1 + 0.3 * torch.rand(2, slots, 2, generator=generator)], dim=-1)
    labels = torch.randint(NUM_CLASSES, (2, slots), generator=generator)
    return Targets(labels, boxes.double(), counts, ("a", "b"))


def gaps(ours: LayerPredictions, theirs: LayerPredictions) -> tuple[float, float]:
    """Largest differences of logits and boxes."""
    assert ours.logits.shape == theirs.logits.shape
    return (
        (ours.logits - theirs.logits).abs().max().item(),
        (ours.boxes - theirs.boxes).abs().max().item(),
    )


def expected_predictions(
    transformer: RelationTransformer, memory: Tokens, made: SetPredictions
) -> dict[str, tuple[LayerPredictions, LayerPredictions]]:
    """Ours and the reference's by name of the branch; the noised boxes are ours."""
    assert made.denoising is not None
    assert made.hybrid is not None
    content, boxes, proposed = choose(transformer, memory, one_to_many=False)
    noised = made.denoising.queries.queries
    layers = run_decoder(
        transformer.decoder,
        torch.cat([noised.content, content], dim=1),
        torch.cat([noised.boxes, boxes], dim=1),
        memory,
        blocked=noised.blocked,
        relation=transformer.relation,
    )
    many_content, many_boxes, many_proposed = choose(transformer, memory, one_to_many=True)
    many = run_decoder(transformer.decoder, many_content, many_boxes, memory)
    start = noised.content.shape[1]
    return {
        "decoder": (made.decoder, layers.queries(start)),
        "denoising": (made.denoising.layers, layers.queries(0, start)),
        "encoder": (made.encoder, proposed),
        "one-to-many": (made.hybrid.decoder, many),
        "one-to-many encoder": (made.hybrid.encoder, many_proposed),
    }


@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0)])
def test_training_equals_the_reference(cfg: CfgNode, counts: tuple[int, int]) -> None:
    transformer, _ = parts(cfg)
    levels, masks = maps()
    made = transformer(levels, masks, make_targets(counts))
    memory = transformer.encoder(transformer.to_tokens(levels, masks))
    pairs = expected_predictions(transformer, memory, made)
    for name, (ours, theirs) in pairs.items():
        if not ours.logits.numel():
            assert name == "denoising"
            continue
        logits, boxes = gaps(ours, theirs)
        print(f"{name}: logits {logits:.1e}, boxes {boxes:.1e}")
        # Measured: 3e-14; in float32 7e-6, or 8e-5 on another processor.
        assert logits < 1e-10
        assert boxes < 1e-10


@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0)])
def test_gradients_equal_those_of_the_reference(cfg: CfgNode, counts: tuple[int, int]) -> None:
    # References hand on the gradient of one layer, relations none.
    transformer, _ = parts(cfg)
    levels, masks = maps()
    made = transformer(levels, masks, make_targets(counts))
    memory = transformer.encoder(transformer.to_tokens(levels, masks))
    generator = torch.Generator().manual_seed(3)
    totals = [torch.zeros(()).double() for _ in range(2)]
    for both in expected_predictions(transformer, memory, made).values():
        logits_weight = torch.randn(both[0].logits.shape, generator=generator)
        boxes_weight = torch.randn(both[0].boxes.shape, generator=generator)
        for i, branch in enumerate(both):
            totals[i] = totals[i] + (branch.logits * logits_weight).sum()
            totals[i] = totals[i] + (branch.boxes * boxes_weight).sum()
    parameters = dict(transformer.named_parameters())
    ours, theirs = (
        torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
        for total in totals
    )
    worst = 0.0
    for name, one, other in zip(parameters, ours, theirs, strict=True):
        if other is None:  # no noised boxes: the embedding of labels is held in the graph
            assert name == "denoising.label_embedding.weight"
            assert not one.any()
            continue
        gap = (one - other).abs().max() / other.abs().max().clamp(min=1.0)
        worst = max(worst, gap.item())
    print(f"gradients of {len(parameters)} parameters: {worst:.1e} of the largest entry")
    # Measured: 1e-13.
    assert worst < 1e-10


def test_inference_equals_the_reference(cfg: CfgNode) -> None:
    transformer, _ = parts(cfg)
    transformer.eval()
    levels, masks = maps()
    with torch.no_grad():
        made = transformer(levels, masks)
        memory = transformer.encoder(transformer.to_tokens(levels, masks))
        content, boxes, _ = choose(transformer, memory, one_to_many=False)
        layers = run_decoder(
            transformer.decoder, content, boxes, memory, relation=transformer.relation
        )
        unrelated = run_decoder(transformer.decoder, content, boxes, memory)
    assert made.hybrid is None
    assert made.denoising is None
    logits, moved = gaps(made.decoder, LayerPredictions(layers.logits[-1:], layers.boxes[-1:]))
    print(f"logits {logits:.1e}, boxes {moved:.1e}")
    # Measured: 6e-15; without the relation they are far apart.
    assert logits < 1e-10
    assert moved < 1e-10
    assert (made.decoder.logits[0] - unrelated.logits[-1]).abs().max() > 1e-2


@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0)])
def test_losses_equal_the_reference(cfg: CfgNode, counts: tuple[int, int]) -> None:
    transformer, criterion = parts(cfg)
    targets = make_targets(counts)
    made = transformer(*maps(), targets)
    assert made.denoising is not None
    assert made.encoder is not None
    assert made.hybrid is not None
    assert made.hybrid.encoder is not None
    expected: dict[str, Tensor] = {}
    for suffix, branch, repeats in (("", made, 1), ("_o2m", made.hybrid, 3)):
        layers = losses_of(branch.decoder, targets, repeats=repeats)
        (proposals,) = losses_of(branch.encoder, targets, repeats=repeats)
        for name in layers[0]:
            expected[f"loss_{name}{suffix}"] = layers[-1][name]
            expected[f"loss_{name}_aux{suffix}"] = sum(x[name] for x in layers[:-1])
            expected[f"loss_{name}_enc{suffix}"] = proposals[name]
    groups = made.denoising.queries.num_groups
    for layer in losses_of(made.denoising.layers, targets, num_groups=groups):
        for name, loss in layer.items():
            expected[f"loss_{name}_dn"] = expected.get(f"loss_{name}_dn", 0.0) + loss
    losses = criterion(made, targets)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-10, atol=1e-10, msg=name)
    largest = max(abs(loss - expected[name]) / max(loss, 1.0) for name, loss in losses.items())
    # Measured: 2e-16.
    print(f"largest difference of a loss {largest:.1e}")


def test_fused_encoder_equals_a_loop(cfg: CfgNode) -> None:
    transformer, _ = parts(cfg)
    tokens = transformer.to_tokens(*maps())
    encoder = transformer.encoder
    assert isinstance(encoder, FusedEncoder)
    outputs, state = [tokens.values], tokens
    for layer in encoder.layers:
        state = layer(state, tokens.cell_references())
        outputs.append(state.values)
    first, second = encoder.fusion.layers
    expected = encoder.fusion_norm(second(first(torch.cat(outputs, dim=-1)).clamp(min=0)))
    torch.testing.assert_close(encoder(tokens).values, expected, rtol=0, atol=0)


def test_without_a_one_to_many_branch(cfg: CfgNode) -> None:
    transformer, criterion = parts(cfg, num_one_to_many=0)
    targets = make_targets((1, 1))
    made = transformer(*maps(), targets)
    assert made.hybrid is None
    assert not [name for name in criterion(made, targets) if name.endswith("_o2m")]


def test_more_one_to_many_queries_than_cells(cfg: CfgNode) -> None:
    transformer, _ = parts(cfg, num_one_to_many=253)
    with pytest.raises(ValueError, match=r"252 cells in all, fewer than the 253 queries"):
        transformer(*maps(), make_targets((1, 1)))
    assert transformer.eval()(*maps()).hybrid is None
