# SPDX-License-Identifier: Apache-2.0
"""Training with the hook is training without it; its history survives a kill."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tests.models.architectures import detr, dino, faster_rcnn_fpn

from vastdet.data.generated import GeneratedSplit, register_generated
from vastdet.engine import Trainer
from vastdet.engine.command_line import main
from vastdet.engine.gradient_history import GradientHistory
from vastdet.engine.gradient_hook import METRICS, NotObservedError, metrics_of
from vastdet.layers.observed_logits import observed

ON = ["ANALYSIS.GRADIENTS.ENABLED", "True", "ANALYSIS.GRADIENTS.PERIOD", "2"]
ALL_METRICS = {name for names in METRICS.values() for name in names}


@pytest.fixture(scope="module")
def watched(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    assert train(*ON, "OUTPUT_DIR", str(folder)) == [0]
    return folder


def weights(load: Callable, folder: Path) -> dict[str, torch.Tensor]:
    return load(folder / "model_final.pth")["training_model"]


def test_weights_are_those_without_the_hook(
    watched: Path, train: Any, load: Callable, tmp_path: Path
) -> None:
    assert train("OUTPUT_DIR", str(tmp_path)) == [0]
    own, expected = weights(load, watched), weights(load, tmp_path)
    assert own.keys() == expected.keys()
    assert all(own[name].equal(tensor) for name, tensor in expected.items())
    assert not (tmp_path / "gradients.json").exists()


def test_history_and_metrics_are_written(watched: Path) -> None:
    history = GradientHistory.load(watched / "gradients.json")
    assert history.iterations == [1, 3, 5, 7]
    assert history.subject.names == ("dot", "ring", "bar")
    assert (history.sums("positive") > 0).all()
    assert history.category_sums("negative").sum() == pytest.approx(
        history.sums("negative").sum(), rel=1e-9
    )
    assert history.num_positives.sum() > 0
    last = json.loads((watched / "metrics.json").read_text().splitlines()[-1])
    assert last.keys() >= ALL_METRICS
    ratio = history.sums("positive")[-1] / history.sums("negative")[-1]
    assert last["gradient_ratio"] == pytest.approx(ratio, rel=1e-12)


def test_killed_and_resumed_has_the_whole_history(
    watched: Path, train: Any, tmp_path: Path
) -> None:
    options = [*ON, "OUTPUT_DIR", str(tmp_path)]
    assert train(*options, kill="in_step@5") == [-9]
    assert train("--resume", *options) == [0]
    own, expected = (folder / "gradients.json" for folder in (tmp_path, watched))
    assert own.read_bytes() == expected.read_bytes()


def test_two_processes_add_up(train: Any, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    assert train(*ON, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(folder), processes=2) == [0, 0]
    history = GradientHistory.load(folder / "gradients.json")
    assert history.iterations == [1]
    assert history.category_sums("negative").sum() == pytest.approx(
        history.sums("negative").sum(), rel=1e-9
    )


@pytest.fixture(scope="module")
def scenes() -> Iterator[str]:
    """Eight generated scenes of ten categories, registered."""
    name = "gradient_scenes"
    register_generated(name, replace(GeneratedSplit.default(10, "train"), num_images=8))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def small(cfg: CfgNode, scenes: str, tmp_path: Path) -> CfgNode:
    """Four iterations on generated scenes."""
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_STD = [57.0, 57.0, 57.0]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (scenes,), ()
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 4, ()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = "AdamW", 1e-3
    cfg.SEED = 3
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.ANALYSIS.GRADIENTS.PERIOD = 1
    return cfg


def trained(cfg: CfgNode, *, watched: bool) -> Trainer:
    cfg.ANALYSIS.GRADIENTS.ENABLED = watched
    torch.manual_seed(3)
    trainer = Trainer(cfg.clone())
    trainer.train()
    return trainer


def test_dino_trains_the_same(small: CfgNode, tmp_path: Path) -> None:
    dino(small)
    small.MODEL.DINO.NUM_CLASSES = 10
    plain, watched = (trained(small, watched=w).model.state_dict() for w in (False, True))
    assert all(watched[name].equal(tensor) for name, tensor in plain.items())
    history = GradientHistory.load(tmp_path / "gradients.json")
    assert history.iterations == [0, 1, 2, 3]
    # Each of two layers has a query for each box.
    assert history.num_positives.sum() % 2 == 0
    assert (history.sums("positive") > 0).all()
    assert history.sums("negative", part="proposals").all()


def test_a_softmax_is_refused(small: CfgNode) -> None:
    detr(small)
    small.MODEL.DETR.NUM_CLASSES = 10
    with pytest.raises(NotObservedError, match="DETR has no class loss with sigmoids to analyse"):
        trained(small, watched=True)
    # Nobody watches what comes after.
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    assert observed(logits, torch.zeros(1, 1, dtype=torch.int64)) is logits


def test_command_line_says_so_in_one_line(
    small: CfgNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faster_rcnn_fpn(small)
    small.MODEL.ROI_HEADS.NUM_CLASSES = 10
    small.ANALYSIS.GRADIENTS.ENABLED = True
    (tmp_path / "config.yaml").write_text(small.dump())
    assert main(["--config-file", str(tmp_path / "config.yaml")]) == 2
    assert "error: GeneralizedRCNN has no class loss with sigmoids" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("PERIOD", 0, "ANALYSIS.GRADIENTS.PERIOD is 0; expected 1 or more"),
        ("HARD_RULE", "worst", "hard negatives are given as 'worst', 0.1"),
    ],
)
def test_wrong_settings(small: CfgNode, key: str, value: Any, message: str) -> None:
    dino(small)
    small.MODEL.DINO.NUM_CLASSES = 10
    small.ANALYSIS.GRADIENTS[key] = value
    with pytest.raises(ValueError, match=message):
        trained(small, watched=True)


def test_no_ratio_without_gradient_of_negatives() -> None:
    parts = torch.zeros(4, 2, 5)
    assert metrics_of(parts) == {}
    parts[0, 1] = torch.tensor([1.0, 4.0, 2.0, 3.0, 1.0])
    assert metrics_of(parts) == {
        "gradient_ratio_cross_entropy": 0.25, "hard_negative_share_cross_entropy": 0.5
    }  # fmt: skip
