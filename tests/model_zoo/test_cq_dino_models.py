# SPDX-License-Identifier: Apache-2.0
"""The official CQ-DINO checkpoints' names and shapes, from lists of their state dicts."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vastdet.model_zoo import get_config
from vastdet.model_zoo.convert_file import expected_tensors, model_config
from vastdet.model_zoo.key_map import Converter
from vastdet.model_zoo.registry import find_converter

INDEX = "relative_position_index"
# List of names, its entries, millions of parameters.
CASES = {
    "cq_dino_swin_B": ("cqdino_tree_swinb1k_v3det", 848, 143.9),
    "cq_dino_swin_B_22k": ("cqdino_tree_swinb22k_v3det", 848, 144.06),
    "cq_dino_swin_L": ("cqdino_tree_swinl_v3det", 854, 254.4),
    "cq_dino_swin_L_coco": ("cqdino_sa_swinl_coco", 858, 246.7),
}


def released(shared_data: Path, name: str) -> dict[str, Tensor]:
    """Tensors without values under all names of a release."""
    listed = shared_data.parent / "facts" / "state_dicts" / f"{CASES[name][0]}.txt"
    if not listed.is_file():
        pytest.skip(f"no list of names at {listed}")
    rows = (line.split("\t") for line in listed.read_text("utf-8").splitlines() if line)
    return {
        row[0]: torch.empty(ast.literal_eval(row[1]), device="meta") for row in rows if len(row) > 2
    }


def model_of(converter: Converter, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    cfg, overrides = model_config(converter, weights)
    assert overrides == ()
    return expected_tensors(converter, cfg)


@pytest.mark.parametrize("name", CASES)
def test_every_released_tensor_has_its_place(name: str, shared_data: Path) -> None:
    weights = released(shared_data, name)
    _, num_entries, millions = CASES[name]
    assert len(weights) == num_entries
    assert sum(t.numel() for n, t in weights.items() if INDEX not in n) / 1e6 == pytest.approx(
        millions, abs=0.1
    )
    converter = find_converter(name)
    model = model_of(converter, weights)
    converter.check(weights, model)
    converted = converter.to_detectron2(weights)
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in model.items()}
    back = converter.from_detectron2(converted)
    # What follows from the window is not written.
    kept = {n: t.shape for n, t in weights.items() if INDEX not in n}
    assert {n: t.shape for n, t in back.items()} == kept
    assert len(weights) - len(kept) == 24


def test_missing_left_over_and_other_shapes(shared_data: Path) -> None:
    name = "cq_dino_swin_B"
    weights = released(shared_data, name)
    converter = find_converter(name)
    model = model_of(converter, weights)
    label_norm = "language_model.label_norm.weight"
    short = {n: t for n, t in weights.items() if n != label_norm}
    with pytest.raises(ValueError, match=rf"missing: 1\n +{label_norm}"):
        converter.check(short, model)
    with pytest.raises(ValueError, match=r"left over: 1\n +language_model.label_attn"):
        converter.check({**weights, "language_model.label_attn.norm.bias": torch.empty(1)}, model)
    window_12 = released(shared_data, "cq_dino_swin_B_22k")
    with pytest.raises(ValueError, match=r"of another shape: 24\n.*\(529, 4\), expected \(169, 4"):
        converter.check(window_12, model)
    with pytest.raises(ValueError, match="left over"):
        find_converter("cq_dino_swin_L").check(
            released(shared_data, "cq_dino_swin_L_coco"),
            {p.detectron2: torch.empty(0) for p in find_converter("cq_dino_swin_L").pairs},
        )


def test_another_vocabulary(shared_data: Path) -> None:
    weights = released(shared_data, "cq_dino_swin_B")
    weights["language_model.label_embed"] = torch.empty(1203, 768, device="meta")
    converter = find_converter("cq_dino_swin_B")
    cfg, overrides = model_config(converter, weights)
    assert overrides == ("MODEL.CQ_DINO.NUM_CLASSES", "1203")
    converter.check(weights, expected_tensors(converter, cfg))


@pytest.mark.parametrize("name", CASES)
def test_configs_have_what_the_authors_have(name: str) -> None:
    cfg = get_config(find_converter(name).config)
    node = cfg.MODEL.CQ_DINO
    is_coco = name.endswith("coco")
    assert node.PRESET == "official"
    assert ("self_attention" if is_coco else "tree") == node.CATEGORY.CORRELATION
    assert (30 if is_coco else 100) == node.SELECTION.NUM_SELECTED
    assert node.SELECTION.DROPOUT == node.FUSION.DROPOUT == 0.1
    assert node.DROPOUT == 0.0
    assert cfg.TEST.DETECTIONS_PER_IMAGE == max(cfg.TEST.MAX_DETS) == 300
    sizes = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.ROUNDING_TEST)
    assert sizes == (800, 1333, "down")
    assert tuple(range(480, 801, 32)) == cfg.INPUT.MIN_SIZE_TRAIN
    loss = node.SELECTION
    # Theirs are sums over 2 images, ours means over them.
    expected = (0.2, 0.0, 0.0, 0.0) if is_coco else (2.0, 7.0, 0.0, 0.05)
    assert expected == (loss.LOSS_WEIGHT, loss.GAMMA_NEGATIVE, loss.GAMMA_POSITIVE, loss.CLIP)
    weights = (node.LOSS.CLASS_WEIGHT, node.LOSS.BBOX_WEIGHT, node.LOSS.GIOU_WEIGHT)
    assert weights == (1.0, 5.0, 2.0)
    costs = (node.MATCHER.CLASS_WEIGHT, node.MATCHER.BBOX_WEIGHT, node.MATCHER.GIOU_WEIGHT)
    assert costs == (2.0, 5.0, 2.0)
    assert (node.LOSS.FOCAL_ALPHA, node.LOSS.FOCAL_GAMMA) == (0.25, 2.0)
    noise = node.DENOISING
    assert (noise.NUM_QUERIES, noise.LABEL_NOISE, noise.BOX_NOISE) == (100, 0.5, 1.0)
