# SPDX-License-Identifier: Apache-2.0
"""A tiny detector on disk, and the tools as modules."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.modeling import build_model

from vastdet.engine.config_files import load_config

TINY = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {NAME: build_timm_fpn_backbone, FREEZE_AT: 0}
  TIMM: {NAME: resnet10t, OUT_FEATURES: [res4, res5]}
  FPN: {IN_FEATURES: [res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[32], [64]]}
  RETINANET: {NUM_CLASSES: 24, IN_FEATURES: [p4, p5], NUM_CONVS: 1, SCORE_THRESH_TEST: 0.0}
DATASETS:
  TRAIN: [generated_24_train]
  TEST: [generated_24_val]
DATALOADER: {NUM_WORKERS: 0}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 128}
SOLVER: {IMS_PER_BATCH: 2}
TEST: {DETECTIONS_PER_IMAGE: 5}
VERSION: 2
"""


@dataclass(frozen=True)
class TinyDetector:
    """A config file and random weights for it."""

    config_file: Path
    weights: Path


@pytest.fixture(scope="session")
def tiny_detector(tmp_path_factory: pytest.TempPathFactory) -> TinyDetector:
    folder = tmp_path_factory.mktemp("tiny")
    config_file = folder / "config.yaml"
    config_file.write_text(TINY)
    torch.manual_seed(0)
    model = build_model(load_config(config_file))
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return TinyDetector(config_file, folder / "model.pth")


@pytest.fixture(scope="session")
def load_tool(repository: Path) -> Callable[[str], ModuleType]:
    """Import tools/<name>.py without putting tools/ on the path."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(
            f"tool_{name}", repository / f"tools/{name}.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
