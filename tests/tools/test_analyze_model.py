# SPDX-License-Identifier: Apache-2.0
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch.utils.flop_counter import FlopCounterMode

from vastdet.engine.analysis import analyze, count_parameters
from vastdet.engine.config_files import load_config
from vastdet.engine.model_inputs import random_inputs


def test_counts_agree_with_torchs_own_counter(tiny_detector: Any) -> None:
    cfg = load_config(tiny_detector.config_file)
    model = build_model(cfg).eval()
    found = analyze(model, cfg, image_size=(96, 128))
    (record,) = random_inputs(cfg, batch_size=1, image_size=(96, 128))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model([{"image": record["image"]}])
    products = sum(found.flops_by_operator.get(k, 0) for k in ("conv", "linear", "matmul"))
    assert products == counter.get_total_flops() / 2  # torch counts both halves of a multiply-add
    assert found.total.num_parameters == sum(p.numel() for p in model.parameters())
    assert found.total.num_flops == sum(found.flops_by_operator.values())
    assert sum(found.not_counted.values()) > 0


def test_modules_add_up(tiny_detector: Any) -> None:
    cfg = load_config(tiny_detector.config_file)
    model = build_model(cfg)
    model.backbone.requires_grad_(False)
    model.train()
    found = analyze(model, cfg, image_size=(64, 64), max_depth=1)
    assert model.training
    children = [m for m in found.modules if m.depth == 1]
    assert {m.name for m in children} >= {"backbone", "head"}
    for count in ("num_parameters", "num_flops", "num_activations"):
        assert sum(getattr(m, count) for m in children) == getattr(found.total, count) > 0
    assert 0 < found.total.num_trainable < found.total.num_parameters


def test_work_grows_with_the_image(tiny_detector: Any) -> None:
    cfg = load_config(tiny_detector.config_file)
    model = build_model(cfg)
    small, large = (analyze(model, cfg, image_size=(s, s), max_depth=0) for s in (64, 128))
    assert large.total.num_flops == pytest.approx(4 * small.total.num_flops, rel=0.02)
    assert [m.name for m in large.modules] == [""]


def test_parameters_by_hand() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    rows = count_parameters(model, max_depth=1)
    assert [(r.name, r.num_parameters) for r in rows] == [("", 24), ("0", 16), ("1", 8)]


def test_a_two_stage_model_with_proposals(cfg: Any) -> None:
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    found = analyze(build_model(cfg), cfg, image_size=(64, 64), max_depth=1)
    assert {m.name for m in found.modules} >= {"", "backbone", "roi_heads"}
    assert found.total.num_flops > 0


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("analyze_model")


def test_the_tool_prints_and_writes(
    tool: ModuleType, tiny_detector: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--config-file", str(tiny_detector.config_file), "--depth", "1"]
    arguments += ["--tasks", "parameters", "flops", "structure", "--image-size", "64", "64"]
    arguments += ["--image-size", "64", "96", "--json", str(tmp_path / "a.json")]
    assert tool.main(arguments) == 0
    out = capsys.readouterr().out
    for text in ("RetinaNet(", "Parameters: ", "64x96 pixels", "  backbone", "Not counted: "):
        assert text in out
    content = json.loads((tmp_path / "a.json").read_text())
    assert [c["image_size"] for c in content] == [[64, 64], [64, 96]]
    assert content[0]["modules"][0]["num_flops"] > 0


def test_frozen_layers_of_a_pretrained_backbone_are_counted_without_fetching_it(
    tool: ModuleType, tiny_detector: Any, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--tasks", "parameters", "--config-file", str(tiny_detector.config_file)]
    frozen = []
    for freeze_at in ("0", "1", "2"):
        opts = ["MODEL.TIMM.PRETRAINED", "True", "MODEL.BACKBONE.FREEZE_AT", freeze_at]
        assert tool.main([*arguments, *opts]) == 0
        line = re.search(r"([\d,]+) frozen", capsys.readouterr().out)
        assert line
        frozen.append(int(line[1].replace(",", "")))
    assert 0 == frozen[0] < frozen[1] < frozen[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "0", "5"], "need a positive batch and image size"),
        (["--depth", "-1"], "max_depth must be at least 0"),
        (["MODEL.BACKBONES", "1"], "Did you mean MODEL.BACKBONE"),
    ],
)
def test_wrong_arguments_are_one_line(
    tool: ModuleType,
    tiny_detector: Any,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
) -> None:
    assert tool.main(["--config-file", str(tiny_detector.config_file), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
