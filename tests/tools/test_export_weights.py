# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from detectron2.modeling import build_model
from tests.tools.conftest import TinyDetector

from vastdet.engine import VastdetCheckpointer
from vastdet.engine.config_files import load_config


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> Callable[..., int]:
    module = load_tool("export_weights")
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def test_a_detector_in_half_the_size(
    tool: Callable[..., int],
    tiny_detector: TinyDetector,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = []
    for options in ((), ("--half",)):
        output = tmp_path / f"w{len(options)}.safetensors"
        assert tool(tiny_detector.weights, "--out", output, *options) == 0
        assert f"{output}: " in capsys.readouterr().out
        model = build_model(load_config(tiny_detector.config_file))
        VastdetCheckpointer(model).load(str(output), checkpointables=[], complete=True)
        sizes.append(output.stat().st_size)
    assert 0.49 < sizes[1] / sizes[0] < 0.52


def test_wrong_input_is_one_line(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(tmp_path / "none.pth", "--out", tmp_path / "w.safetensors") == 2
    error = capsys.readouterr().err
    assert "no weights at" in error
    assert error.count("\n") == 1
