# SPDX-License-Identifier: Apache-2.0
"""RT-DETR and RT-DETRv2 against transformers: predictions, losses, gradients."""

import importlib
import itertools
import math

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tests.models.architectures import set_prediction
from tests.models.rt_detr_reference import NUM_CLASSES, NUM_QUERIES, our_model, transformers_model
from torch import Tensor, nn

from vastdet.detr.export import DetectionNetwork, example_images, export_program
from vastdet.detr.query_position import BoxMLP
from vastdet.detr.refinement import IterativeRefinement
from vastdet.detr.structures import Targets
from vastdet.layers.fusion import NORMS, fused
from vastdet.layers.ms_deform_attn import MultiScaleDeformableAttention
from vastdet.model_zoo.rt_detr_models import rt_detr_transformers_converter
from vastdet.models.rt_detr.discrete_attention import DiscreteCrossAttention
from vastdet.models.rt_detr.hybrid_encoder import RepBlock
from vastdet.models.rt_detr.rt_detr import build_decoder_layer, build_transformer

SIZE = (128, 192)
# Boxes of an image each: two, one, none.
BOXES = [
    torch.tensor([[0.3, 0.4, 0.2, 0.5], [0.7, 0.5, 0.4, 0.3]]),
    torch.tensor([[0.5, 0.5, 0.8, 0.6]]),
    torch.zeros(0, 4),
]


def images(number: int) -> Tensor:
    return torch.rand(number, 3, *SIZE, generator=torch.Generator().manual_seed(3))


def largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize(("version", "method"), [(1, "bilinear"), (2, "bilinear"), (2, "discrete")])
def test_predictions_equal_transformers(cfg: CfgNode, version: int, method: str) -> None:
    torch.manual_seed(version)
    options = {}
    if version == 2:
        options = {
            "decoder_method": "default" if method == "bilinear" else "discrete",
            "decoder_n_points": 3,
            "decoder_offset_scale": 0.7,
        }
        cfg.MODEL.RT_DETR.NUM_POINTS = [3, 3, 3]
        cfg.MODEL.RT_DETR.OFFSET_SCALE = 0.7
    theirs = transformers_model(version, **options)
    cfg.MODEL.RT_DETR.SAMPLING = method
    ours = our_model(cfg, theirs, version)
    pixels = images(2)
    with torch.no_grad():
        expected = theirs(pixels)
        found = ours.predict_padded(list(pixels)).decoder
    assert len(found.logits) == 1
    logits = largest(found.logits[-1], expected.logits)
    boxes = largest(found.boxes[-1], expected.pred_boxes)
    spread = float(expected.pred_boxes.std(dim=1).mean()), float(expected.logits.std())
    # Measured: see the README of the architecture.
    print(f"v{version} {method}: logits {logits:.1e}, boxes {boxes:.1e}, spread {spread}")
    assert logits < 1e-4
    assert boxes < 1e-5
    assert spread[0] > 0.01


def as_labels(boxes: list[Tensor]) -> list[dict[str, Tensor]]:
    return [{"class_labels": torch.arange(len(x)) % NUM_CLASSES, "boxes": x.clone()} for x in boxes]


def as_targets(boxes: list[Tensor]) -> Targets:
    counts = tuple(len(x) for x in boxes)
    padded = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(len(boxes), max(1, *counts), 1)
    labels = torch.zeros(padded.shape[:2], dtype=torch.int64)
    for i, x in enumerate(boxes):
        padded[i, : len(x)] = x
        labels[i, : len(x)] = torch.arange(len(x)) % NUM_CLASSES
    return Targets(labels, padded, counts, tuple(map(str, range(len(boxes)))))


def joined_losses(theirs: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Their losses under our names; the last of their auxiliary ones are of the proposals."""
    joined: dict[str, Tensor] = {}
    for name, other in (("vfl", "class"), ("bbox", "bbox"), ("giou", "giou")):
        joined[f"loss_{other}"] = theirs[f"loss_{name}"]
        aux = [theirs[f"loss_{name}_aux_{i}"] for i in range(num_layers)]
        joined[f"loss_{other}_aux"] = sum(aux[:-1])
        joined[f"loss_{other}_enc"] = aux[-1]
        joined[f"loss_{other}_dn"] = sum(theirs[f"loss_{name}_dn_{i}"] for i in range(num_layers))
    return joined


@pytest.mark.parametrize("version", [1, 2])
def test_losses_and_gradients_equal_transformers(
    cfg: CfgNode, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(version)
    theirs = transformers_model(version)
    ours = our_model(cfg, theirs, version)
    # The authors let the loss of a layer reach the boxes of the layer before; transformers do not.
    ours.transformer.decoder.refinement = IterativeRefinement(1e-5)
    module = importlib.import_module(type(theirs).__module__)
    original = module.get_contrastive_denoising_training_group

    def seeded(**arguments: object) -> object:
        torch.manual_seed(5)
        return original(**arguments)

    # Both draw labels' flips, labels, signs and sizes in this order.
    monkeypatch.setattr(module, "get_contrastive_denoising_training_group", seeded)
    ours.transformer.denoising.register_forward_pre_hook(lambda *_: torch.manual_seed(5) and None)
    pixels = images(3)
    expected = theirs.train()(pixels, labels=as_labels(BOXES))
    targets = as_targets(BOXES)
    predictions = ours.train().predict_padded(list(pixels), targets)
    losses = ours.criterion(predictions, targets)
    joined = joined_losses(expected.loss_dict, 3)
    assert losses.keys() == joined.keys()
    gaps = {k: abs(float((losses[k] / joined[k]).detach()) - 1) for k in losses}
    print(f"v{version}: losses differ by {max(gaps.values()):.1e} of their size")
    assert max(gaps.values()) < 1e-4, gaps
    sum(losses.values()).backward()
    expected.loss.backward()
    # Measured: 1.6e-5 of the largest number, but for those biases; on a processor without AVX-512
    # 4.3e-3 in the backbone's first layers, 8e-4 with other convolutions (oneDNN off): rounding at
    # the edge of a ReLU.
    assert gradient_gap(ours, theirs, version) < 1e-2


def test_noised_boxes_equal_transformers(cfg: CfgNode) -> None:
    module = importlib.import_module(type(transformers_model(1)).__module__)
    cfg.MODEL.RT_DETR.NUM_CLASSES = NUM_CLASSES
    denoising = build_transformer(cfg.MODEL.RT_DETR).denoising
    embedding = nn.Embedding(NUM_CLASSES + 1, 8)
    torch.manual_seed(5)
    made = denoising(as_targets(BOXES), num_matching=NUM_QUERIES)
    torch.manual_seed(5)
    labels, logits, *_ = module.get_contrastive_denoising_training_group(
        as_labels(BOXES), NUM_CLASSES, NUM_QUERIES, embedding
    )
    boxes, expected = made.queries.boxes, logits.sigmoid()
    assert boxes.shape == (3, 200, 4) == (*labels.shape[:2], 4)
    # Measured: 3.6e-12, of the boxes of empty slots, which are 1e-5: 3.6e-7 of their size.
    print(f"noised boxes: {largest(boxes, expected):.1e}")
    torch.testing.assert_close(boxes, expected, atol=0, rtol=1e-6)
    assert float(expected[2].max()) < 1e-5


def gradient_gap(ours: nn.Module, theirs: nn.Module, version: int) -> float:
    """The largest difference of a gradient, as a share of the largest number in it.

    Of biases that a norm takes out again, the gradient is zero but for rounding.
    """
    found = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    converter = rt_detr_transformers_converter(18, version=version)
    expected = converter.canonical(expected)
    gaps = {
        pair.detectron2: largest(found[pair.detectron2], expected[pair.source])
        / float(expected[pair.source].abs().max().clamp(min=1e-2))
        for pair in converter.pairs
        if pair.detectron2 in found and pair.source in expected
    }
    assert len(gaps) > 150
    worst = max(gaps, key=gaps.__getitem__)
    print(f"v{version}: {len(gaps)} gradients differ by up to {gaps[worst]:.1e}, {worst}")
    return gaps[worst]


def test_unknown_sampling(cfg: CfgNode) -> None:
    cfg.MODEL.RT_DETR.SAMPLING = "nearest"
    with pytest.raises(ValueError, match=r"SAMPLING is 'nearest'; expected one of \['bilinear'"):
        build_decoder_layer(cfg.MODEL.RT_DETR)


def test_discrete_sampling_equals_a_loop() -> None:
    torch.manual_seed(0)
    sizes, num_points = [(6, 9), (3, 4)], [2, 1]
    attention = DiscreteCrossAttention(8, num_heads=2, num_levels=2, num_points=num_points)
    nn.init.normal_(attention.sampling_offsets.bias, std=2.0)
    nn.init.normal_(attention.attention_weights.weight)
    query, value = torch.randn(1, 5, 8), torch.randn(1, 54 + 12, 8)
    boxes = torch.rand(1, 5, 1, 4)
    shapes, starts = torch.tensor(sizes), torch.tensor([0, 54])
    found = MultiScaleDeformableAttention.forward(attention, query, value, boxes, shapes, starts)

    offsets = attention.sampling_offsets(query).view(5, 2, 3, 2)
    weights = attention.attention_weights(query).view(5, 2, 3).softmax(-1)
    projected = attention.value_proj(value).view(-1, 2, 4)
    expected = torch.zeros(5, 2, 4)
    for q, head, point in itertools.product(range(5), range(2), range(3)):
        level = 0 if point < 2 else 1
        height, width = sizes[level]
        reach = boxes[0, q, 0, 2:] * 0.5 / num_points[level]
        x, y = (boxes[0, q, 0, :2] + offsets[q, head, point] * reach).tolist()
        column = min(max(math.floor(x * width + 0.5), 0), width - 1)
        row = min(max(math.floor(y * height + 0.5), 0), height - 1)
        cell = projected[(0, 54)[level] + row * width + column, head]
        expected[q, head] += weights[q, head, point] * cell
    expected = attention.output_proj(expected.flatten(1))
    # Measured: 1e-6, from the centres of cells in float32.
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)


def test_discrete_sampling_trains_all_but_its_offsets() -> None:
    attention = DiscreteCrossAttention(8, num_heads=2, num_levels=1, num_points=2)
    arguments = (torch.rand(1, 2, 1, 4), torch.tensor([[3, 4]]), torch.tensor([0]))
    query, value = torch.randn(1, 2, 8), torch.randn(1, 12, 8)
    MultiScaleDeformableAttention.forward(attention, query, value, *arguments).sum().backward()
    frozen = [name for name, p in attention.named_parameters() if p.grad is None]
    assert frozen == ["sampling_offsets.weight", "sampling_offsets.bias"]


def test_positions_are_an_mlp_over_the_box() -> None:
    torch.manual_seed(0)
    position = BoxMLP(8)
    boxes = torch.rand(2, 3, 4)
    first, second = position.mlp.layers
    assert first.weight.shape == (16, 4)
    expected = second((boxes @ first.weight.T + first.bias).clamp(min=0))
    for content in (torch.zeros(2, 3, 8), torch.ones(2, 3, 8)):
        found = position(boxes, content, 0, memory=None)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_fused_detector_detects_the_same(cfg: CfgNode) -> None:
    torch.manual_seed(0)
    ours = our_model(cfg, transformers_model(1), 1)
    one, pixels = fused(ours), images(2)
    assert not [m for m in one.modules() if type(m).__name__ in NORMS]
    assert not [m for m in one.modules() if isinstance(m, RepBlock)]
    with torch.no_grad():
        expected = ours.predict_padded(list(pixels)).decoder
        found = one.predict_padded(list(pixels)).decoder
    # Measured: logits 1.0e-6, boxes 3.4e-6.
    assert largest(found.logits, expected.logits) < 1e-4
    assert largest(found.boxes, expected.boxes) < 1e-5


def test_the_network_can_be_exported_and_compiled_whole(cfg: CfgNode) -> None:
    set_prediction(cfg, "RTDETR", cfg.MODEL.RT_DETR)
    node = cfg.MODEL.RT_DETR
    node.ENCODER_DIM, node.ENCODER_FEEDFORWARD_DIM, node.NUM_DECODER_LAYERS = 32, 64, 1
    torch.manual_seed(0)
    network = DetectionNetwork(fused(build_model(cfg)))
    pixels = example_images(network.model, (64, 96))
    with torch.no_grad():
        expected = network(pixels)
        exported = export_program(network.model, (64, 96)).module()(pixels)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")(pixels)
    for found in (exported, compiled):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
