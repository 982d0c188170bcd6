# SPDX-License-Identifier: Apache-2.0
"""The command line of the data check: exit codes, what it says, what it writes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def run(load_tool: Callable) -> Callable[..., int]:
    main = load_tool("check_dataset").main
    return lambda *arguments: main([str(argument) for argument in arguments])


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """A sound dataset of one picture, images/a.png, with one box."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path / "train.json"


def add_bad_box(path: Path) -> None:
    content = json.loads(path.read_text())
    box = [float("nan"), 2, 3, 4]
    content["annotations"].append({"id": 2, "image_id": 1, "category_id": 1, "bbox": box})
    path.write_text(json.dumps(content))


def test_clean(run: Callable, train: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(train, train.parent / "images") == 0
    output = capsys.readouterr().out
    assert "1 images, 1 boxes, 1 categories; 1 image files decoded" in output
    assert "No problems found" in output


def test_problems_report_and_fix(
    run: Callable, train: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    add_bad_box(train)
    before = train.read_bytes()
    fixed, report = tmp_path / "fixed.json", tmp_path / "report.json"
    assert run(train, "--no-images", "--fix", fixed, "--json", report) == 1
    output = capsys.readouterr().out
    assert "NaN or infinite box" in output
    assert "1 boxes dropped: NaN or infinite box" in output
    assert str(fixed) in output
    saved = json.loads(report.read_text())
    assert saved["source"] == str(train)
    assert saved["problems"][0]["count"] == 1
    assert train.read_bytes() == before
    assert run(fixed, tmp_path / "images") == 0


def test_registered_dataset(run: Callable, capsys: pytest.CaptureFixture) -> None:
    assert run("--dataset", "generated_10_val", "--no-images") == 0
    assert "generated_10_val: " in capsys.readouterr().out


def test_categories_and_tree(run: Callable, train: Path, tmp_path: Path) -> None:
    other = json.loads(train.read_text())
    other["categories"][0]["name"] = "dog"
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert run(train, "--no-images", "--same-categories-as", train) == 0
    assert run(train, "--no-images", "--same-categories-as", tmp_path / "other.json") == 1
    loop = {"categoryid2treeid": {"1": "n"}, "father2child": {"n": ["m"], "m": ["n"]}}
    (tmp_path / "tree.json").write_text(json.dumps(loop))
    assert run(train, "--no-images", "--tree", tmp_path / "tree.json") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{train}", "{folder}/nowhere"), "nowhere does not exist"),
        (("{folder}/gone.json", "--no-images"), "gone.json"),
        (("{train}", "--no-images", "--tree", "{folder}/gone.json"), "gone.json"),
        (("{train}", "--no-images", "--fix", "{train}"), "is the checked file"),
        (("--dataset", "no_such_dataset"), "no dataset 'no_such_dataset' is registered"),
    ],
)
def test_wrong_input(
    run: Callable,
    train: Path,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    values = {"train": train, "folder": train.parent}
    assert run(*(argument.format(**values) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    "arguments",
    [(), ("a.json",), ("a.json", "images", "--dataset", "b"), ("a.json", "b", "--workers", "0")],
)
def test_wrong_usage(run: Callable, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
