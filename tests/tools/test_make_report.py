# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("make_report")


def write_run(folder: Path) -> None:
    """A run's folder with one iteration, one image and one detection."""
    inference = folder / "inference" / "tool_report_val"
    inference.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"iteration": 0, "total_loss": 1.5, "lr": 0.1}\n')
    (inference / "metrics.json").write_text(json.dumps({"bbox": {"AP": 12.3, "AP50": 45.6}}))
    detection = {"image_id": 3, "category_id": 9, "bbox": [5, 5, 20, 20], "score": 0.8}
    (inference / "coco_instances_results.json").write_text(json.dumps([detection]))
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(folder / "a.png")
    box = {"id": 1, "image_id": 3, "category_id": 9, "bbox": [5, 5, 20, 20], "area": 400}
    dataset = {
        "images": [{"id": 3, "file_name": "a.png", "height": 40, "width": 50}],
        "categories": [{"id": 9, "name": "green cup"}],
        "annotations": [box | {"iscrowd": 0}],
    }
    (folder / "annotations.json").write_text(json.dumps(dataset))


def test_the_tool_writes_a_page_with_registered_pictures(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_run(tmp_path)
    arguments = ["--output", str(tmp_path), "--page", str(tmp_path / "page.html")]
    arguments += ["--title", "My run", "--register", "tool_report_val"]
    arguments += [str(tmp_path / "annotations.json"), str(tmp_path)]
    try:
        assert tool.main(arguments) == 0
    finally:
        DatasetCatalog.remove("tool_report_val")
        MetadataCatalog.remove("tool_report_val")
    assert "page.html" in capsys.readouterr().out
    text = (tmp_path / "page.html").read_text()
    for part in ("<h1>My run</h1>", "green cup", "45.6", "<b data-found>1</b>"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "no-such-run"], "no folder no-such-run"),
        (["--output", "{run}", "--score-threshold", "2"], "score_threshold must lie in"),
    ],
)
def test_wrong_arguments_are_one_line(
    tool: ModuleType,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
) -> None:
    write_run(tmp_path)
    assert tool.main([a.format(run=tmp_path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
