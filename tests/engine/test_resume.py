# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed and resumed end with the weights of an undisturbed run, bit for bit."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

KILLED = [-9]


def assert_equal(a: Any, b: Any, path: str = "") -> None:
    """Equality of nested containers with bitwise equality of tensors."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{path}/{i}")
    else:
        assert a == b, path


@pytest.fixture(scope="module")
def undisturbed(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train("OUTPUT_DIR", str(folder)) == [0]
    return folder


def test_final_checkpoint_holds_average_and_everything_to_go_on(
    undisturbed: Path, load: Callable
) -> None:
    content = load(undisturbed / "model_final.pth")
    assert set(content) == {"model", "training_model", "ema_updates", "trainer", "iteration"}
    assert content["ema_updates"] == 8
    moved = [k for k, v in content["model"].items() if not v.equal(content["training_model"][k])]
    assert moved
    (state,) = content["trainer"]["processes"]
    # RetinaNet's running loss normaliser is a plain attribute; it steers later losses.
    assert ":loss_normalizer" in state["scalars"]
    assert set(state["random"]) == {"python", "numpy", "torch"}


@pytest.mark.parametrize(
    "kill",
    ["in_step@0", "in_step@2", "in_step@7", "while_writing@1", "while_writing@3", "before_note@2"],
)
def test_killed_and_resumed_equals_undisturbed(
    kill: str, undisturbed: Path, train: Any, load: Callable, tmp_path: Path
) -> None:
    output = ["OUTPUT_DIR", str(tmp_path)]
    assert train(*output, kill=kill) == KILLED
    assert not (tmp_path / "model_final.pth").exists()
    assert train("--resume", *output) == [0]
    assert_equal(load(tmp_path / "model_final.pth"), load(undisturbed / "model_final.pth"))


def test_killed_twice_with_workers_and_evaluation(
    undisturbed: Path, train: Any, load: Callable, tmp_path: Path
) -> None:
    options = ["OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", "2"]
    # Evaluating draws no random number from training.
    options += ["DATASETS.TEST", "('toy',)", "TEST.EVAL_PERIOD", "2"]
    assert train(*options, kill="in_step@3") == KILLED
    assert train("--resume", *options, kill="in_step@5") == KILLED
    assert train("--resume", *options) == [0]
    assert_equal(load(tmp_path / "model_final.pth"), load(undisturbed / "model_final.pth"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    iterations = [line["iteration"] for line in lines]
    assert iterations == sorted(set(iterations))
    assert lines[-1]["iteration"] == 8
    assert "bbox/AP" in lines[-1]
    assert lines[-2]["iteration"] == 7
    assert "total_loss" in lines[-2]


def test_random_choices_of_the_model_are_repeated(
    train: Any, load: Callable, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = ["MODEL.META_ARCHITECTURE", "ToyRandomLoss", "SOLVER.OPTIMIZER", "AdamW"]
    options += ["SOLVER.ACCUMULATION_STEPS", "2", "SOLVER.AMP.ENABLED", "True"]
    assert train(*options, "OUTPUT_DIR", str(whole)) == [0]
    assert train(*options, "OUTPUT_DIR", str(stopped), kill="in_step@5") == KILLED
    assert train("--resume", *options, "OUTPUT_DIR", str(stopped)) == [0]
    assert_equal(load(stopped / "model_final.pth"), load(whole / "model_final.pth"))


def damage(path: Path) -> None:
    """Flip one byte in the middle, as a bad disk does."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.fixture(scope="module")
def killed(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run killed in its last iteration leaves; copy it before going on from it."""
    folder = tmp_path_factory.mktemp("killed")
    assert train("OUTPUT_DIR", str(folder), kill="in_step@7") == KILLED
    return folder


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "remove"])
def test_damaged_newest_checkpoint_is_passed_over(
    harm: str, killed: Path, undisturbed: Path, train: Any, load: Callable, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "model_0000005.pth"
    assert (tmp_path / "last_checkpoint").read_text() == newest.name
    if harm == "flip":
        damage(newest)
    elif harm == "truncate":
        os.truncate(newest, newest.stat().st_size // 2)
    elif harm == "empty":
        os.truncate(newest, 0)
    else:
        newest.unlink()
    assert train("--resume", "OUTPUT_DIR", str(tmp_path)) == [0]
    assert_equal(load(tmp_path / "model_final.pth"), load(undisturbed / "model_final.pth"))


def test_all_checkpoints_damaged_is_an_error(train: Any, tmp_path: Path) -> None:
    (tmp_path / "model_0000001.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert train("--resume", "OUTPUT_DIR", str(tmp_path)) == [2]


def test_run_killed_early_does_not_resume_an_earlier_one(
    undisturbed: Path, train: Any, load: Callable, tmp_path: Path
) -> None:
    output = ["OUTPUT_DIR", str(tmp_path)]
    assert train(*output, "SEED", "8", "SOLVER.MAX_ITER", "3") == [0]
    assert train(*output, kill="in_step@1") == KILLED
    assert train("--resume", *output) == [0]
    assert_equal(load(tmp_path / "model_final.pth"), load(undisturbed / "model_final.pth"))
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [7]


def test_only_the_newest_checkpoints_are_kept(train: Any, tmp_path: Path) -> None:
    options = ["OUTPUT_DIR", str(tmp_path), "SOLVER.CHECKPOINTS_KEPT", "2"]
    assert train(*options, kill="in_step@6") == KILLED
    assert train("--resume", *options) == [0]
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"model_0000005.pth", "model_0000007.pth", "model_final.pth"}


def test_finished_run_may_be_prolonged(
    train: Any, undisturbed: Path, load: Callable, tmp_path: Path
) -> None:
    options = ["OUTPUT_DIR", str(tmp_path), "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"]
    # The schedule before iteration 4 is the same for both lengths.
    assert train(*options, "SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "0") == [0]
    assert train("--resume", *options, "SOLVER.WARMUP_ITERS", "0") == [0]
    assert load(tmp_path / "model_final.pth")["iteration"] == 7
    whole = tmp_path / "whole"
    assert train("OUTPUT_DIR", str(whole), "SOLVER.WARMUP_ITERS", "0") == [0]
    assert_equal(load(tmp_path / "model_final.pth"), load(whole / "model_final.pth"))
