# SPDX-License-Identifier: Apache-2.0
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
  META_ARCHITECTURE: CQDINOSelector
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {NAME: build_timm_backbone, FREEZE_AT: 0}
  TIMM: {NAME: test_resnet, OUT_FEATURES: [res3, res4, res5]}
  CQ_DINO:
    NUM_CLASSES: 24
    CATEGORY: {EMBEDDINGS: random, DIM: 32, CORRELATION: none}
    SELECTION:
      NUM_SELECTED: 5
      IMAGE_DIM: 32
      NUM_HEADS: 2
      FEEDFORWARD_DIM: 32
      DROPOUT: 0.0
DATASETS:
  TRAIN: [generated_24_train]
  TEST: [generated_24_val]
DATALOADER: {NUM_WORKERS: 0}
INPUT: {MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 96}
SOLVER: {IMS_PER_BATCH: 4, REFERENCE_BATCH_SIZE: 4}
VERSION: 2
"""


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("fit_shortlist")


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path, dict]:
    config, weights = tmp_path / "config.yaml", tmp_path / "model.pth"
    config.write_text(SMALL)
    torch.manual_seed(0)
    state = build_model(load_config(config)).state_dict()
    torch.save({"model": state}, weights)
    return config, weights, state


def test_only_the_match_is_new(
    tool: ModuleType, trained: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, weights, state = trained
    output = tmp_path / "new" / "shortlist.pth"
    command = ["--config-file", str(config), "--weights", str(weights), "--output", str(output)]
    command += ["--made-up", "20"]
    assert tool.main([*command, "--images", "6", "--steps", "60"]) == 0
    printed = capsys.readouterr().out
    assert f"{output}: a shortlist from 8 images, loss 0.0" in printed
    written = torch.load(output, weights_only=True)["model"]
    for name, value in state.items():
        assert torch.equal(written.pop(name), value)
    assert {name.split(".")[2] for name in written} == {"match"}
    # A file that has a match is learned from as well.
    again = ["--weights", str(output), "--output", str(output), "--images", "4", "--steps", "3"]
    again += ["--made-up", "0"]
    assert tool.main(["--config-file", str(config), *again]) == 0


def test_categories_that_attend_to_each_other(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, weights = tmp_path / "config.yaml", tmp_path / "model.pth"
    config.write_text(SMALL.replace("CORRELATION: none", "CORRELATION: self_attention"))
    torch.save({"model": build_model(load_config(config)).state_dict()}, weights)
    output = tmp_path / "shortlist.pth"
    command = ["--config-file", str(config), "--weights", str(weights), "--output", str(output)]
    command += ["--images", "4", "--steps", "2"]
    assert tool.main(command) == 2
    assert "give --made-up 0" in capsys.readouterr().err
    assert tool.main([*command, "--made-up", "0"]) == 0
    assert output.exists()


def test_wrong_input(
    tool: ModuleType,
    trained: tuple,
    tiny_detector: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, weights, state = trained
    output = ["--output", str(tmp_path / "out.pth")]
    other = ["--config-file", str(tiny_detector.config_file)]
    assert tool.main([*other, "--weights", str(tiny_detector.weights), *output]) == 2
    assert "only CQDINO and CQDINOSelector select categories" in capsys.readouterr().err
    del state["categories.queries.embedding"]
    torch.save({"model": state}, weights)
    assert tool.main(["--config-file", str(config), "--weights", str(weights), *output]) == 2
    assert "lacks 1 of the weights of the model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(["--config-file", str(config), "--weights", "x", *output, "--images", "0"])
    assert "--images and --steps must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(["--config-file", str(config), "--weights", "x", *output, "--made-up", "-1"])
    assert "--made-up must be at least 0" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
