# SPDX-License-Identifier: Apache-2.0
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

from vastdet.engine.config_files import load_config

SMALL = """
MODEL:
  META_ARCHITECTURE: DINO
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {NAME: build_timm_backbone, FREEZE_AT: 0}
  TIMM: {NAME: test_resnet, OUT_FEATURES: [res3, res4, res5]}
  DINO:
    NUM_CLASSES: 24
    EMBED_DIM: 32
    NUM_HEADS: 4
    FEEDFORWARD_DIM: 32
    NUM_ENCODER_LAYERS: 1
    NUM_DECODER_LAYERS: 1
    NUM_QUERIES: 10
TEST: {DETECTIONS_PER_IMAGE: 5}
VERSION: 2
"""


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("export_model")


@pytest.mark.slow
def test_writes_a_program_and_compares_it(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, weights = tmp_path / "config.yaml", tmp_path / "model.pth"
    config.write_text(SMALL)
    torch.save({"model": build_model(load_config(config)).state_dict()}, weights)
    output = tmp_path / "new" / "model.pt2"
    command = ["--config-file", str(config), "--weights", str(weights), "--format", "pt2"]
    assert tool.main([*command, "--output", str(output), "--image-size", "64", "96"]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {output}" in printed
    assert "boxes 0.0e+00, scores 0.0e+00, classes 0.0e+00" in printed
    boxes, _, _ = torch.export.load(output).module()(torch.zeros(1, 3, 64, 96))
    assert boxes.shape == (1, 5, 4)


def test_says_which_package_is_missing(
    tool: ModuleType,
    tiny_detector: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    files = ["--config-file", str(tiny_detector.config_file), "--output", "model.onnx"]
    assert tool.main([*files, "--format", "onnx"]) == 2
    assert "--format onnx: ONNX files need the package onnx" in capsys.readouterr().err


def test_refuses_other_detectors_and_endings(
    tool: ModuleType, tiny_detector: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--config-file", str(tiny_detector.config_file)]
    command = [*files, "--weights", str(tiny_detector.weights), "--format", "pt2", "--output"]
    assert tool.main([*command, str(tmp_path / "model.pt2")]) != 0
    assert "only set-prediction detectors" in capsys.readouterr().err
    assert tool.main([*command, str(tmp_path / "model.onnx")]) != 0
    assert "must end in .pt2" in capsys.readouterr().err
