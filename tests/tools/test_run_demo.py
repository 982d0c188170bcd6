# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vastdet.model_zoo import get_config

README = Path(__file__).parents[2] / "README.md"
PAGE_TEXTS = ("1,000 categories", "Trained from scratch here", "12.3", "240 iterations")


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("run_demo")


@pytest.fixture
def weights(tmp_path: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the trained weights."""
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"first")

    def trained_config(name: str, trained: bool = False) -> Any:
        cfg = get_config(name)
        cfg.MODEL.WEIGHTS = str(file) if trained else ""
        return cfg

    monkeypatch.setattr(tool, "get_config", trained_config)
    return file


@pytest.fixture
def calls(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that the demo runs, in place of which a run's folder is written."""
    found: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        found.append(arguments)
        folder = Path(arguments[arguments.index("OUTPUT_DIR") + 1])
        inference = folder / "inference" / "some_val"
        inference.mkdir(parents=True, exist_ok=True)
        content = {"dataset": "some_val", "num_images": 8, "bbox": {"AP": 12.3, "AP50": 45.6}}
        (inference / "metrics.json").write_text(json.dumps(content))
        if "--eval-only" not in arguments:
            row = {"iteration": 239, "total_loss": 1.5, "time": 1.0}
            (folder / "metrics.json").write_text(json.dumps(row))
        return 0

    monkeypatch.setattr(tool.command_line, "main", run)
    return found


def test_scores_trains_and_writes_one_page(
    tool: ModuleType,
    weights: Path,
    calls: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    assert tool.main(["--output", str(tmp_path / "demo"), "SOLVER.MAX_ITER", "7"]) == 0
    scoring, training = calls
    assert "--eval-only" in scoring
    assert scoring[-2:] == ["MODEL.WEIGHTS", str(weights)]
    assert "--resume" in training
    assert training[-2:] == ["SOLVER.MAX_ITER", "7"]
    page = (tmp_path / "demo/index.html").read_text("utf-8")
    for text in PAGE_TEXTS:
        assert text in page
    assert page.index("1,000 categories") < page.index("Trained from scratch here")
    printed = capsys.readouterr().out
    assert "index.html in a browser" in printed
    # The command for one's own data is the README's.
    readme = " ".join(README.read_text("utf-8").replace("\\\n", " ").split())
    assert f"  {tool.OWN_DATA}\n" in printed
    assert tool.OWN_DATA in readme


def test_a_second_run_scores_only_other_weights(
    tool: ModuleType, weights: Path, calls: list[list[str]], tmp_path: Path
) -> None:
    arguments = ["--output", str(tmp_path / "demo")]
    assert tool.main(arguments) == tool.main(arguments) == 0
    assert ["--eval-only" in call for call in calls] == [True, False, False]
    weights.write_bytes(b"second")
    assert tool.main(arguments) == 0
    assert "--eval-only" in calls[3]


def test_another_config_is_scored_again(
    tool: ModuleType,
    weights: Path,
    calls: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert tool.score(tmp_path) == tool.score(tmp_path) == 0
    assert len(calls) == 1
    same = tool.get_config

    def changed(name: str, trained: bool = False) -> Any:
        cfg = same(name, trained=trained)
        cfg.TEST.DETECTIONS_PER_IMAGE += 1
        return cfg

    monkeypatch.setattr(tool, "get_config", changed)
    assert tool.score(tmp_path) == 0
    assert len(calls) == 2


@pytest.mark.parametrize("lost", ["inference", "sha256", "seconds", "everything"])
def test_what_is_lost_is_scored_again(
    tool: ModuleType, weights: Path, calls: list[list[str]], tmp_path: Path, lost: str
) -> None:
    assert tool.score(tmp_path) == 0
    folder = tmp_path / tool.SCORED_FOLDER
    if lost == "inference":
        shutil.rmtree(folder / lost)
    else:
        found = json.loads((folder / tool.SCORED_FILE).read_text())
        found.pop(lost, None)
        content = json.dumps([] if lost == "everything" else found)
        (folder / tool.SCORED_FILE).write_text(content)
    assert tool.score(tmp_path) == 0
    assert len(calls) == 2


@pytest.mark.parametrize("step", ["--eval-only", "--resume"])
def test_a_failed_step_ends_the_demo(
    tool: ModuleType,
    weights: Path,
    calls: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    succeed = tool.command_line.main
    monkeypatch.setattr(tool.command_line, "main", lambda a: 130 if step in a else succeed(a))
    assert tool.main(["--output", str(tmp_path / "demo")]) == 130
    assert not (tmp_path / "demo/index.html").exists()
    # What was interrupted is not taken for done.
    done = (tmp_path / "demo/trained_weights/scored.json").exists()
    assert done == (step == "--resume")


def test_missing_weights_are_the_model_zoos_error(
    tool: ModuleType,
    calls: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def missing(name: str, trained: bool = False) -> Any:
        raise FileNotFoundError(f"no weights of {name}; train it")

    monkeypatch.setattr(tool, "get_config", missing)
    assert tool.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: no weights of quick/cq_dino_kinds; train it\n"
    assert calls == []


def test_the_demo_trains_from_random_weights_and_measures_gradients(tool: ModuleType) -> None:
    cfg = get_config(tool.SMALL)
    assert cfg.MODEL.META_ARCHITECTURE == "CQDINO"
    assert cfg.MODEL.WEIGHTS == ""
    assert not cfg.MODEL.TIMM.PRETRAINED
    assert cfg.MODEL.CQ_DINO.CATEGORY.EMBEDDINGS == "random"
    assert cfg.ANALYSIS.GRADIENTS.ENABLED
    assert cfg.SOLVER.MAX_ITER % cfg.TEST.EVAL_PERIOD == 0
