# SPDX-License-Identifier: Apache-2.0
"""tools/compute_proposals.py end to end, and its errors."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from vastdet.data import read_proposals


@pytest.fixture
def tool(repository: Path) -> Callable[[list[str]], int]:
    return runpy.run_path(str(repository / "tools" / "compute_proposals.py"))["main"]


@pytest.fixture
def dataset(tmp_path: Path) -> list[str]:
    """A COCO-format dataset of two pictures with one square each: NAME JSON IMAGES."""
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for i in (1, 2):
        pixels = np.full((48, 64, 3), 90, np.uint8)
        pixels[10:34, 20:44] = (220, 30, 30)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 48})
        annotations.append(
            {"id": i, "image_id": i, "category_id": 1, "bbox": [20, 10, 24, 24], "area": 576}
            | {"iscrowd": 0}
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "square"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    return ["proposal_tool_set", str(tmp_path / "set.json"), str(tmp_path / "images")]


def test_writes_both_formats_and_prints_the_recall(
    tool: Callable[[list[str]], int],
    dataset: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, pickle_file = tmp_path / "p.npz", tmp_path / "p.pkl"
    command = ["--register", *dataset, "--dataset", dataset[0], "--output", str(output)]
    command += ["--export-detectron2", str(pickle_file), "--processes", "0"]
    try:
        assert tool(command) == 0
    finally:
        DatasetCatalog.remove(dataset[0])
        MetadataCatalog.remove(dataset[0])
    assert [p.image_id for p in read_proposals(output)] == ["1", "2"]
    assert pickle_file.stat().st_size > 0
    printed = capsys.readouterr().out
    assert "2 images" in printed
    assert "recall at IoU 0.5: 100.0 % of 2 boxes" in printed


def test_unknown_dataset_is_one_line(
    tool: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(["--dataset", "no_such_set", "--output", str(tmp_path / "p.npz")]) == 2
    message = capsys.readouterr().err
    assert "no dataset 'no_such_set' is registered" in message
    assert "--register NAME JSON IMAGES" in message


def test_wrong_suffix_and_number(
    tool: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        tool(["--dataset", "x", "--output", "p.npz", "--max-proposals", "0"])
    assert stop.value.code == 2
    assert "at least 1" in capsys.readouterr().err
