# SPDX-License-Identifier: Apache-2.0
"""Converters: layouts, older names, fewer categories, epsilon, and what they refuse."""

import pytest
import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops.misc import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from vastdet.layers import RoundedAnchorGenerator
from vastdet.model_zoo.key_map import (
    ClassRows,
    Converter,
    ObjectnessRows,
    Pair,
    background_last,
    change_batch_norm_eps,
    foreground_only,
    sizes_first,
)
from vastdet.model_zoo.torchvision_models import torchvision_converters


def test_background_moves_from_first_to_last() -> None:
    layout = background_last()
    rows = torch.tensor([[9.0], [0.0], [1.0]])
    assert layout.to_detectron2(rows).flatten().tolist() == [0, 1, 9]
    assert torch.equal(layout.from_detectron2(layout.to_detectron2(rows)), rows)


def test_boxes_of_background_are_left_out_and_come_back_as_zeros() -> None:
    layout = foreground_only(4)
    rows = torch.arange(12.0)
    assert layout.to_detectron2(rows).tolist() == list(range(4, 12))
    assert layout.from_detectron2(rows[4:]).tolist() == [0] * 4 + list(range(4, 12))


def test_anchor_order_agrees_with_both_anchor_generators() -> None:
    theirs = _default_anchorgen()
    ours = RoundedAnchorGenerator(
        sizes=[list(sizes) for sizes in theirs.sizes],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
    )
    layout = sizes_first(num_sizes=3, num_ratios=3)
    for their_anchors, our_anchors in zip(theirs.cell_anchors, ours.cell_anchors, strict=True):
        assert torch.equal(layout.to_detectron2(their_anchors), our_anchors)


def test_every_pair_has_names_of_its_own() -> None:
    for converter in torchvision_converters().values():
        sources = [name for pair in converter.pairs for name in (pair.source, *pair.aliases)]
        targets = [pair.detectron2 for pair in converter.pairs]
        assert len(set(sources)) == len(sources)
        assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_names_of_older_releases_are_understood(name: str) -> None:
    model = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    converter = torchvision_converters()[name]
    state = model.state_dict()
    renamed = {pair.source: pair.aliases[0] for pair in converter.pairs if pair.aliases}
    old = {renamed.get(key, key): tensor for key, tensor in state.items()}
    assert len(renamed) >= 14
    # torchvision migrates the older names too when the file states no version: the judge.
    model.load_state_dict(old, strict=True)
    expected = converter.to_detectron2(state)
    converted = converter.to_detectron2(old)
    assert all(torch.equal(converted[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match="given twice"):
        converter.to_detectron2({**state, **old})


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_features_are_the_same(depth: int, cfg) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth == 18 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    ours = build_backbone(cfg).eval()
    converter = torchvision_converters()[f"resnet{depth}"]
    ours.load_state_dict(converter.to_detectron2(theirs.state_dict()), strict=True)
    images = torch.randn(2, 3, 96, 64)
    trunk = torch.nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad():
        torch.testing.assert_close(ours(images)["res5"], trunk(images), rtol=1e-5, atol=1e-5)


def test_selected_categories_keep_their_sigmoid_scores() -> None:
    converter = torchvision_converters()["retinanet_resnet50_fpn"]
    num_anchors, num_rows, kept = 9, 6, [4, 1]
    name = "head.classification_head.cls_logits.bias"
    logits = torch.arange(float(num_anchors * num_rows))
    selected = converter.select_categories({name: logits, "other": torch.ones(1)}, kept)
    expected = logits.reshape(num_anchors, num_rows)[:, kept]
    assert torch.equal(selected[name].reshape(num_anchors, 2), expected)
    assert torch.equal(selected["other"], torch.ones(1))


def test_selected_categories_keep_background_in_faster_rcnn() -> None:
    converter = torchvision_converters()["fasterrcnn_resnet50_fpn"]
    prefix = "roi_heads.box_predictor"
    state = {
        f"{prefix}.cls_score.bias": torch.arange(5.0),
        f"{prefix}.bbox_pred.bias": torch.arange(20.0),
    }
    selected = converter.select_categories(state, [4, 2])
    assert selected[f"{prefix}.cls_score.bias"].tolist() == [0, 4, 2]
    boxes = selected[f"{prefix}.bbox_pred.bias"].tolist()
    assert boxes == [*range(4), *range(16, 20), *range(8, 12)]
    # Softmax scores grow by the share of the rows left out, and by no more than that.
    all_scores = state[f"{prefix}.cls_score.bias"].softmax(0)
    few_scores = selected[f"{prefix}.cls_score.bias"].softmax(0)
    share_kept = all_scores[[0, 4, 2]].sum()
    torch.testing.assert_close(few_scores, all_scores[[0, 4, 2]] / share_kept)


def test_a_category_beyond_the_rows_is_an_error() -> None:
    converter = torchvision_converters()["retinanet_resnet50_fpn"]
    with pytest.raises(ValueError, match="has 2 class rows, but category ids up to 90"):
        converter.select_categories(
            {"head.classification_head.cls_logits.bias": torch.zeros(18)}, [1, 90]
        )


def test_epsilon_is_absorbed_by_the_weight() -> None:
    torch.manual_seed(0)
    theirs = TorchvisionFrozenBatchNorm2d(6, eps=0.0)
    theirs.running_var.copy_(torch.tensor([1e-8, 1e-6, 1e-5, 1e-3, 1.0, 30.0]))
    theirs.weight.normal_()
    theirs.bias.normal_()
    state = {f"bn1.{key}": value for key, value in theirs.state_dict().items()}
    changed = change_batch_norm_eps(state, old_eps=0.0, new_eps=1e-5)
    ours = FrozenBatchNorm2d(6)
    ours.load_state_dict({key.removeprefix("bn1."): value for key, value in changed.items()})
    images = torch.randn(1, 6, 4, 4)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
    without = FrozenBatchNorm2d(6)
    without.load_state_dict(theirs.state_dict())
    assert (without(images) - theirs(images)).abs().max() > 1
    assert change_batch_norm_eps(state, 1e-5, 1e-5) == state


def test_missing_and_left_over_tensors_are_listed_with_a_suggestion() -> None:
    converter = Converter("toy", "", (Pair("head.weight", "new.weight"), Pair("a", "b")))
    with pytest.raises(ValueError) as error:
        converter.to_detectron2({"head.weights": torch.ones(1), "a": torch.ones(1)})
    text = str(error.value)
    assert "not the state dict of toy" in text
    assert "missing: 1" in text
    assert "head.weight (perhaps head.weights)" in text
    assert "left over: 1" in text
    with pytest.raises(ValueError, match="left over: 1"):
        converter.from_detectron2(
            {"new.weight": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}
        )


def test_a_long_list_is_cut() -> None:
    converter = Converter("toy", "", tuple(Pair(f"x{i}", f"y{i}") for i in range(30)))
    with pytest.raises(ValueError, match="and 18 more"):
        converter.to_detectron2({})


def test_parts_are_joined_and_taken_apart() -> None:
    converter = Converter("toy", "", (Pair("in", "new", parts=("q", "k", "v")),))
    parts = {name: torch.full((2, 3), i) for i, name in enumerate("qkv")}
    joined = converter.to_detectron2(parts)
    assert joined["new"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    back = converter.from_detectron2(joined)
    assert back.keys() == parts.keys()
    assert all(torch.equal(back[name], part) for name, part in parts.items())
    with pytest.raises(ValueError, match=r"missing: 1\n    k$"):
        converter.to_detectron2({name: parts[name] for name in "qv"})
    with pytest.raises(ValueError, match=r"have the shapes \[\(2, 3\), \(3,\), \(2, 3\)\]"):
        converter.to_detectron2({**parts, "k": torch.zeros(3)})


def test_a_copy_alone_and_a_stand_in_are_enough() -> None:
    pairs = (Pair("a.0", "x", copies=("b.0",)), Pair("a.1", "y", stand_in="a.0"))
    converter = Converter("toy", "", pairs)
    converted = converter.to_detectron2({"b.0": torch.ones(1)})
    assert {name: float(value) for name, value in converted.items()} == {"x": 1, "y": 1}
    own = converter.to_detectron2({"b.0": torch.ones(1), "a.1": torch.zeros(1)})
    assert float(own["y"]) == 0


def test_rows_around_the_classes_stay_and_objectness_keeps_its_first() -> None:
    pairs = (
        Pair("embedding", "x", classes=ClassRows(after=1)),
        Pair("both", "y", classes=ClassRows(before=1, after=1)),
        Pair("proposals", "z", classes=ObjectnessRows()),
        Pair("plain", "w", classes=(1, 1)),
        Pair("table", "v", classes=ClassRows(axis=1)),
    )
    converter = Converter("toy", "", pairs)
    state = {
        "embedding": torch.arange(5.0),
        "both": torch.arange(6.0),
        "proposals": torch.arange(4.0),
        "plain": torch.arange(4.0),
        "table": torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]),
    }
    assert converter.num_classes(state) == 4
    assert converter.num_classes({"table": state["table"]}) == 4
    assert converter.num_classes({"table": torch.zeros(3)}) is None
    selected = converter.select_categories(state, [3, 1])
    assert {name: value.tolist() for name, value in selected.items()} == {
        "embedding": [3, 1, 4],
        "both": [0, 3, 1, 5],
        "proposals": [0, 1],
        "plain": [3, 1],
        "table": [[3, 1], [7, 5]],
    }
    assert converter.num_classes(selected) == 2
    with pytest.raises(ValueError, match="embedding has 5 class rows, but category ids up to 4"):
        converter.select_categories(state, [4])


def test_shapes_are_held_against_a_model() -> None:
    converter = Converter("toy", "some/config", (Pair("a", "x"), Pair("b", "y")))
    model = {"x": torch.empty(2, 3, device="meta"), "y": torch.empty(4, device="meta")}
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    converter.check(state, model)
    with pytest.raises(
        ValueError, match=r"of another shape: 1\n    a: \(3, 2\), expected \(2, 3\)"
    ):
        converter.check({**state, "a": torch.zeros(3, 2)}, model)
    with pytest.raises(ValueError, match=r"(?s)missing: 1\n    b.*left over: 1\n    c"):
        converter.check({"a": state["a"], "c": state["b"]}, model)
    with pytest.raises(ValueError, match="1 tensors are in one of them only, such as z"):
        converter.check(state, {**model, "z": torch.empty(1, device="meta")})
