# SPDX-License-Identifier: Apache-2.0
"""tools/train_net.py from the command line, and Detectron2's own train_net on our configs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch.multiprocessing import ProcessRaisedException

from vastdet import add_vastdet_config
from vastdet.engine import command_line
from vastdet.engine.command_line import (
    argument_parser,
    build_config,
    main,
    unusable_input_of,
)
from vastdet.engine.tools import register_datasets

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))


@pytest.fixture
def unregister() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def config_of(unregister: None) -> Callable[[list[str]], Any]:
    def build(argv: list[str]) -> Any:
        arguments = argument_parser().parse_args(argv)
        register_datasets(arguments)
        return build_config(arguments)

    return build


def test_help_shows_how_to_train_on_own_data() -> None:
    text = argument_parser().format_help()
    for word in ("--register NAME JSON IMAGES", "--resume", "--eval-only", "torchrun"):
        assert word in text


def test_class_count_comes_from_registered_data(
    config_of: Callable, toy_arguments: list[str]
) -> None:
    cfg = config_of(toy_arguments)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    # What the user says explicitly is not overruled; the trainer then finds that it does not fit.
    cfg = config_of([*toy_arguments, "MODEL.ROI_HEADS.NUM_CLASSES", "7"])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 3


def test_registered_data_that_is_not_used_changes_nothing(
    config_of: Callable, toy_arguments: list[str]
) -> None:
    cfg = config_of([*toy_arguments, "DATASETS.TRAIN", "('generated_10_train',)"])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["SOLVER.MAX_ITERS", "3"], "Did you mean SOLVER.MAX_ITER?"),
        (["DATASETS.TRAIN", "('toi',)"], "toy"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH"),
        (["MODEL.WEIGHTS", "no/such.pth"], "no/such.pth"),
        (["MODEL.RETINANET.NUM_CLASSES", "9"], "Set MODEL.RETINANET.NUM_CLASSES to 3"),
        (["--eval-only"], "MODEL.WEIGHTS"),
        (["--register", "toy", "other.json", "other"], "toy"),
        (["--num-machines", "2", "--num-gpus", "1"], "--dist-url"),
        (["DATASETS.TEST", "('generated_10_val',)"], "another dataset in DATASETS.TEST"),
        (["MODEL.META_ARCHITECTURE", "Retina"], "No object named 'Retina'"),
        (["MODEL.BACKBONE.NAME", "build_none"], "No object named 'build_none'"),
    ],
)
def test_unusable_input_is_one_line_and_code_2(
    extra: list[str],
    message: str,
    toy_arguments: list[str],
    tmp_path: Path,
    unregister: None,
    capsys: pytest.CaptureFixture,
) -> None:
    assert main([*toy_arguments, *extra, "OUTPUT_DIR", str(tmp_path)]) == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("error: ")]
    assert message in line


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["MODEL.WEIGHTS", "no/such.pth"], "no/such.pth"),
        (["MODEL.RETINANET.NUM_CLASSES", "9"], "Set MODEL.RETINANET.NUM_CLASSES to 3"),
    ],
)
@pytest.mark.slow
def test_unusable_input_with_two_processes(
    extra: list[str],
    message: str,
    toy_arguments: list[str],
    tmp_path: Path,
) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "train_net.py"), *toy_arguments]
    done = subprocess.run(
        [*command, "--num-gpus", "2", *extra, "OUTPUT_DIR", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [s for s in done.stderr.splitlines() if s.startswith("error: ")]
    assert message in line


def test_an_error_of_a_spawned_program_is_not_the_users() -> None:
    text = "\nTraceback (most recent call last):\n  ...\nValueError: a bug in a model\n"
    assert unusable_input_of(ProcessRaisedException(text, 0, 1)) is None


def test_a_folder_that_cannot_be_made(
    toy_arguments: list[str], tmp_path: Path, unregister: None, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert main([*toy_arguments, "OUTPUT_DIR", str(tmp_path / "file" / "run")]) == 2
    assert "error: " in capsys.readouterr().err


def test_an_interrupted_training_says_how_to_go_on(
    toy_arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    unregister: None,
    capsys: pytest.CaptureFixture,
) -> None:
    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line.Trainer, "train", interrupted)
    assert main([*toy_arguments, "OUTPUT_DIR", str(tmp_path)]) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_broken_records_stop_the_run_in_one_line(
    policy: str,
    num_workers: int,
    toy_folder: Path,
    tmp_path: Path,
    unregister: None,
    capsys: pytest.CaptureFixture,
) -> None:
    content = json.loads((toy_folder / "toy.json").read_text())
    for annotation in content["annotations"]:
        annotation["bbox"][0] = float("nan")
    (tmp_path / "nan.json").write_text(json.dumps(content))
    arguments = ["--config-file", str(toy_folder / "retinanet.yaml"), "--register", "toy_nan"]
    arguments += [str(tmp_path / "nan.json"), str(toy_folder / "images")]
    options = ["DATASETS.TRAIN", "('toy_nan',)", "OUTPUT_DIR", str(tmp_path)]
    options += ["DATALOADER.BROKEN_RECORDS", policy, "DATALOADER.NUM_WORKERS", str(num_workers)]
    assert main([*arguments, *options]) == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("error: ")]
    assert "not finite: [nan" in line
    assert line.count(".png: ") <= 1


def test_an_error_of_the_program_keeps_its_traceback(
    toy_arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unregister: None
) -> None:
    def broken(self: Any) -> None:
        raise ValueError("a bug in a model")

    monkeypatch.setattr(command_line.Trainer, "train", broken)
    with pytest.raises(ValueError, match="a bug in a model"):
        main([*toy_arguments, "OUTPUT_DIR", str(tmp_path)])


def test_train_then_evaluate(toy_arguments: list[str], tmp_path: Path, unregister: None) -> None:
    options = ["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "('toy',)"]
    assert main([*toy_arguments, *options]) == 0
    for name in ("config.yaml", "log.txt", "metrics.json", "last_checkpoint", "model_final.pth"):
        assert (tmp_path / name).exists(), name
    assert list(tmp_path.glob("events.out.tfevents.*"))
    # The written config is a config file again.
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 2
    results = tmp_path / "inference" / "toy" / "coco_instances_results.json"
    first = json.loads(results.read_text())
    results.unlink()
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
    assert main([*toy_arguments, "--eval-only", *options, *weights]) == 0
    assert json.loads(results.read_text()) == first
    results.unlink()
    assert main([*toy_arguments, "--eval-only", "--resume", *options]) == 0
    assert json.loads(results.read_text()) == first


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPOSITORY / "configs")))
def test_plain_detectron2_understands_every_config(path: Path) -> None:
    cfg = get_cfg()
    add_vastdet_config(cfg)
    cfg.merge_from_file(str(path))
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    build_lr_scheduler(cfg, optimizer)


@pytest.mark.slow
def test_plain_detectron2_trains_our_config(tmp_path: Path) -> None:
    script = Path(__file__).with_name("plain_train_net.py")
    config = REPOSITORY / "configs" / "quick" / "fcos_generated.yaml"
    options = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"]
    options += ["DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(script), "--config-file", str(config), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model_final.pth").exists()
