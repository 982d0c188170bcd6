# SPDX-License-Identifier: Apache-2.0
"""Whose weights are all in a checkpoint fetches none of timm's, and freezes what it did before."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import Tensor, nn

from vastdet.backbones import timm_backbone
from vastdet.engine.command_line import main
from vastdet.engine.config_files import load_config, with_all_weights
from vastdet.engine.predictor import Predictor

PRETRAINED = [
    *("MODEL.BACKBONE.NAME", "build_timm_retinanet_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", "2"),
    *("MODEL.TIMM.NAME", "test_resnet", "MODEL.TIMM.PRETRAINED", "True"),
]
# What FREEZE_AT 2 freezes.
FROZEN = ("backbone.bottom_up.body.conv1.", "backbone.bottom_up.body.layer1.")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The timm models whose weights were fetched; in place of the hub's, always the same ones."""
    create, names = timm_backbone._create, []

    def without_hub(name: str, **options: Any) -> nn.Module:
        if not options.pop("pretrained"):
            return create(name, pretrained=False, **options)
        names.append(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm_backbone, "_create", without_hub)
    return names


@pytest.fixture
def command(toy_arguments: list[str], tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Run train_net on the toy data with a pretrained backbone, into the test's folder."""
    before = set(DatasetCatalog.list())
    options = ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('toy',)", *PRETRAINED]

    def run(*arguments: str, opts: tuple[str, ...] = ()) -> None:
        assert main([*toy_arguments, *arguments, *options, *opts]) == 0

    yield run
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def frozen_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: x for k, x in weights.items() if k.startswith(FROZEN)}


def test_resuming_and_evaluating_fetch_nothing(
    fetched: list[str], command: Callable[..., None], load: Callable, tmp_path: Path
) -> None:
    command("--resume", opts=("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()"))
    assert fetched == ["test_resnet"], "there was nothing to resume"
    fetched.clear()
    first = load(tmp_path / "model_final.pth")["training_model"]
    command("--resume", opts=("SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()"))
    second = load(tmp_path / "model_final.pth")["training_model"]
    assert first.keys() == second.keys()
    kept = frozen_part(first)
    assert len(kept) > 10
    assert all(torch.equal(x, second[name]) for name, x in kept.items())
    # Frozen norms count no batches.
    assert not [name for name in kept if name.endswith("num_batches_tracked")]
    trained = [name for name in first if ".body.layer2." in name and name.endswith("conv1.weight")]
    assert trained
    assert not any(torch.equal(first[name], second[name]) for name in trained)

    results = tmp_path / "inference" / "toy" / "coco_instances_results.json"
    after_training = json.loads(results.read_text())
    for arguments, weights in (([], "model_final.pth"), (["--resume"], "no_such.pth")):
        results.unlink()
        command("--eval-only", *arguments, opts=("MODEL.WEIGHTS", str(tmp_path / weights)))
        assert json.loads(results.read_text()) == after_training
    assert fetched == []


def test_a_resumed_run_equals_an_undisturbed_one(
    fetched: list[str], command: Callable[..., None], load: Callable, tmp_path: Path
) -> None:
    opts = ("SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0")
    opts += ("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.MAX_ITER")
    command(opts=(*opts, "4"))
    expected = load(tmp_path / "model_final.pth")["training_model"]
    command(opts=(*opts, "2"))
    command("--resume", opts=(*opts, "4"))
    found = load(tmp_path / "model_final.pth")["training_model"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(x, found[name]) for name, x in expected.items())
    assert fetched == ["test_resnet", "test_resnet"], "by the runs that started anew"


@pytest.mark.parametrize("is_frozen", [False, True])
def test_the_given_config_stays_as_it_is(is_frozen: bool) -> None:
    cfg = load_config(None, ["MODEL.TIMM.PRETRAINED", True, "MODEL.BACKBONE.FREEZE_AT", 1])
    cfg.MODEL.WEIGHTS = ""
    if is_frozen:
        cfg.freeze()
    other = with_all_weights(cfg, "some.pth")
    assert (cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.WEIGHTS) == (True, "")
    assert (other.MODEL.TIMM.PRETRAINED, other.MODEL.WEIGHTS) == (False, "some.pth")
    assert other.MODEL.BACKBONE.FREEZE_AT == 1
    assert other.is_frozen() == cfg.is_frozen() == is_frozen


def test_the_predictor_fetches_nothing(
    fetched: list[str], toy_arguments: list[str], tmp_path: Path
) -> None:
    cfg = load_config(toy_arguments[1], PRETRAINED)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    fetched.clear()
    predictor = Predictor(cfg, tmp_path / "model.pth")
    assert fetched == []
    frozen = frozen_part(dict(predictor.model.named_parameters()))
    assert frozen
    assert not any(p.requires_grad for p in frozen.values())
