# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from detectron2.config import CfgNode


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("vocabulary_planner")


def test_predicts_and_measures(
    tool: ModuleType, tiny_detector: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = str(tiny_detector.config_file)
    arguments = ["--config-file", config, config, "--image-size", "64", "64", "--memory", "2"]
    arguments += ["--counted", "8", "16", "32", "--categories", "24", "5000"]
    arguments += ["--measure", "100", "2000", "--json", str(tmp_path / "plan.json"), "SEED", "1"]
    assert tool.main(arguments) == 0
    out = capsys.readouterr().out
    for text in ("inference, one image of 64x64", "| config ", "| config-2 ", "5,000", "a run"):
        assert text in out
    assert "Largest vocabulary in 2 GB:" in out
    assert "predicted/measured" in out
    content = json.loads((tmp_path / "plan.json").read_text())
    first, second = content["plans"]
    assert first["name"] == "config"
    # A convolution of 3 x 3 x 16 channels and a bias, for each of 3 anchors of a place.
    assert first["num_parameters"]["slope"] == 3 * (9 * 16 + 1)
    assert first["largest"] == second["largest"] > 5000
    assert [x["categories"] for x in first["measured"]] == [100, 2000]
    assert [x["categories"] for x in first["predictions"]] == [24, 5000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "0"], "--memory 0: give a number of GB above 0"),
        (["--categories", "0"], "--categories 0: give numbers of at least 1"),
        (["--counted", "3", "2", "4"], "three rising numbers"),
        (["--counted", "2", "3", "4", "--memory", "0.0001"], "more memory, or a smaller"),
        (["--counted", "2", "3", "4", "--measure", "7"], "two numbers of categories"),
        (["--image-size", "0", "5"], "need a positive batch and image size"),
        (["--threads", "1", "MODEL.BACKBONES", "1"], "Did you mean MODEL.BACKBONE"),
    ],
)
def test_wrong_arguments_are_one_line(
    tool: ModuleType,
    tiny_detector: Any,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
) -> None:
    base = ["--config-file", str(tiny_detector.config_file), "--image-size", "64", "64"]
    assert tool.main([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_parts_of_a_piece_are_warned_of(
    tool: ModuleType, cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.MODEL.META_ARCHITECTURE = "CQDINO"
    for counted, task, is_warned in (
        ("2048 4096 6144", "inference", False),
        ("256 512 768", "train", False),
        ("1024 2048 2500", "inference", True),
    ):
        arguments = tool.parse_arguments(
            ["--config-file", "x", "--task", task, "--counted", *counted.split()]
        )
        caplog.clear()
        tool.warn_of_parts("x", cfg, arguments)
        assert ("pieces of 1,024" in caplog.text) == is_warned
