# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/generate_dataset.py."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    path = repository / "tools" / "generate_dataset.py"
    spec = importlib.util.spec_from_file_location("generate_dataset", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_writes_all_formats(tool: ModuleType, tmp_path: Path, capsys) -> None:
    output = tmp_path / "new" / "shapes"
    arguments = ["--categories", "1000", "--images", "3", "--format", "all", "--seed", "5"]
    assert tool.main([*arguments, "--output", str(output), "--set", "width=96", "noise=0"]) == 0
    for name in ("coco", "lvis", "v3det"):
        content = json.loads((output / "annotations" / f"{name}.json").read_text("utf-8"))
        assert len(content["images"]) == 3
        assert content["images"][0]["width"] == 96
        assert len(content["categories"]) == 1000
    assert "v3det_category_tree.json" in capsys.readouterr().out


def test_seed_changes_the_scenes(tool: ModuleType, tmp_path: Path) -> None:
    contents = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        command = ["--images", "2", "--seed", seed, "--output", str(tmp_path / name)]
        assert tool.main(command) == 0
        contents.append((tmp_path / name / "images" / "000001.png").read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--categories", "5"], "expected 10 to 20,000"),
        (["--images", "0"], "at least 1 image"),
        (["--set", "colour=red"], "expected field=value"),
        (["--set", "noise=-3"], "SceneConfig.noise"),
        (["--set", "noise"], "expected field=value"),
    ],
)
def test_wrong_input_is_one_clear_line(
    tool: ModuleType, tmp_path: Path, capsys, arguments: list[str], message: str
) -> None:
    assert tool.main(["--output", str(tmp_path / "x"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_non_empty_output_is_refused(tool: ModuleType, tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    command = ["--images", "1", "--output", str(tmp_path)]
    assert tool.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert tool.main([*command, "--overwrite"]) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
