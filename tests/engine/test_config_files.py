# SPDX-License-Identifier: Apache-2.0
"""Config files are read safely and mistakes are explained."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from vastdet.engine import load_config, set_num_classes
from vastdet.engine.config_files import choose_device, class_count_keys, value_of


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_file_base_and_pairs(tmp_path: Path) -> None:
    write(tmp_path, "SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}", "base.yaml")
    path = write(tmp_path, "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 9, STEPS: [3, 5]}")
    cfg = load_config(path, ["SOLVER.IMS_PER_BATCH", "6", "SOLVER.EMA.ENABLED", "True"])
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.MAX_ITER, solver.IMS_PER_BATCH) == (0.5, 9, 6)
    assert solver.STEPS == (3, 5)
    assert solver.EMA.ENABLED is True
    assert load_config().SOLVER.OPTIMIZER == "SGD"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("SOLVER.MAX_ITERS", "Did you mean SOLVER.MAX_ITER?"),
        ("SOLVER.EMA.DECAI", "Did you mean SOLVER.EMA.DECAY?"),
        ("SOLVER.BASE_LR.X", "SOLVER.BASE_LR"),
        ("ANCHOR.ASPECT_RATIOS", "ASPECT_RATIOS"),
        ("ZZZZ", "Unknown config key ZZZZ"),
    ],
)
def test_unknown_key_names_the_closest(key: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown config key") as error:
        load_config(None, [key, "1"])
    assert hint in str(error.value)
    *nodes, last = key.split(".")
    text = "".join(f"{'  ' * i}{node}:\n" for i, node in enumerate(nodes))
    path = write(tmp_path, f"{text}{'  ' * len(nodes)}{last}: 1\n")
    with pytest.raises(ValueError, match="Unknown config key") as error:
        load_config(path)
    assert hint in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: !!python/object/apply:os.getcwd []", "Python objects"),
        ("SOLVER: !!python/tuple [1, 2]", "Python objects"),
        ("SOLVER: [1, 2", "not well-formed"),
        ("", "KEY: VALUE"),
        ("- 1\n- 2", "KEY: VALUE"),
        ("just words", "KEY: VALUE"),
        ("SOLVER: {MAX_ITER: soon}", "Type mismatch"),
        ("SOLVER: 3", "SOLVER"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, text))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="configs/"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match="_BASE_"):
        load_config(write(tmp_path, "_BASE_: none.yaml"))


def test_pair_without_value() -> None:
    with pytest.raises(ValueError, match="--resume must come before the KEY VALUE pairs"):
        load_config(None, ["SOLVER.MAX_ITER", "3", "--resume"])
    with pytest.raises(ValueError, match=r"'SOLVER\.MAX_ITER' has no value"):
        load_config(None, ["SOLVER.MAX_ITER"])


def test_set_num_classes(cfg: CfgNode) -> None:
    sem_seg = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    cfg.freeze()
    set_num_classes(cfg, 5)
    assert cfg.is_frozen()
    keys = class_count_keys(cfg)
    assert {"MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"} <= set(keys)
    assert {value_of(cfg, key) for key in keys} == {5}
    assert sem_seg == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


def test_device_falls_back_to_the_cpu_with_a_word(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(cfg) is cfg
    cfg.MODEL.DEVICE = "cuda"
    cfg.freeze()
    with caplog.at_level("WARNING"):
        assert choose_device(cfg).MODEL.DEVICE == "cpu"
    assert "No CUDA device" in caplog.text
    assert cfg.MODEL.DEVICE == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(cfg) is cfg


def test_one_name_where_a_list_is_expected() -> None:
    with pytest.raises(ValueError, match=r"TEST is a list, got 'mine'; write .* \"\('mine',\)\""):
        load_config(None, ["DATASETS.TEST", "mine"])
    for value in ("('mine',)", "['mine']", "'mine', 'yours'", ("mine",)):
        assert load_config(None, ["DATASETS.TEST", value]).DATASETS.TEST[0] == "mine"
