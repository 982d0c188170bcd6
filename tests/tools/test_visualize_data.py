# SPDX-License-Identifier: Apache-2.0
"""Pictures of a dataset and of what the mapper feeds: boxes where they belong."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

NAME = "visualize_test_data"


@pytest.fixture
def run(load_tool: Callable, tmp_path: Path) -> Callable[..., int]:
    main = load_tool("visualize_data").main
    return lambda *arguments: main([str(a) for a in ("--output", tmp_path / "look", *arguments)])


@pytest.fixture
def register(tmp_path: Path) -> Iterator[list[object]]:
    """--register for two grey pictures with one box each, and one that is no picture."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["a.png", "b.png", "c.png"]
    for name in names[:2]:
        Image.new("RGB", (800, 400), (128, 128, 128)).save(folder / name)
    (folder / "c.png").write_text("no picture")
    content = {
        "images": [
            {"id": i, "file_name": name, "width": 800, "height": 400}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 3,
                "bbox": [400, 160, 240, 200],
                "iscrowd": 0,
            }
            for i in range(3)
        ],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    yield ["--register", NAME, tmp_path / "data.json", folder]
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def changed(path: Path) -> np.ndarray:
    """XYXY extent, as a part of the picture, of what was drawn on grey."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    rows, columns = np.nonzero(np.abs(image - 128).max(axis=2) > 40)
    height, width = image.shape[:2]
    return np.array(
        [columns.min() / width, rows.min() / height, columns.max() / width, rows.max() / height]
    )


def test_annotations_are_drawn_in_place(
    run: Callable, register: list[object], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(*register, "--num", 5) == 0
    written = sorted(path.name for path in (tmp_path / "look").iterdir())
    assert len(written) == 3
    assert "grid.png" in written
    for name in written[:2]:
        extent = changed(tmp_path / "look" / name)
        np.testing.assert_allclose(extent, [0.5, 0.4, 0.8, 0.9], atol=0.02)
    captured = capsys.readouterr()
    assert "left out" in captured.err
    assert "c.png" in captured.err
    assert "2 pictures" in captured.out


def test_dataloader_shows_the_augmented_image(
    run: Callable, register: list[object], tmp_path: Path
) -> None:
    options = ["INPUT.RANDOM_FLIP", "none", "SOLVER.IMS_PER_BATCH", 1, "INPUT.FORMAT", "RGB"]
    options += ["DATALOADER.MAX_BROKEN_FRACTION", 1.0]
    assert run(*register, "--source", "dataloader", "--num", 2, *options) == 0
    pictures = sorted((tmp_path / "look").glob("0*.png"))
    assert len(pictures) == 2
    np.testing.assert_allclose(changed(pictures[0]), [0.5, 0.4, 0.8, 0.9], atol=0.02)


def test_generated_dataset(run: Callable, tmp_path: Path) -> None:
    assert run("--dataset", "generated_10_val", "--num", 5) == 0
    assert Image.open(tmp_path / "look/grid.png").width == 4 * 480


def test_a_set_without_a_readable_picture(
    run: Callable, register: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for path in (tmp_path / "images").iterdir():
        path.write_text("no picture")
    assert run(*register) == 2
    error = capsys.readouterr().err
    assert error.count("left out: ") == 3
    assert f"no picture of ('{NAME}',) could be drawn" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to draw"),
        (("--dataset", "no_such_dataset"), "no_such_dataset"),
        (("--register", NAME, "gone.json", "."), "gone.json"),
        (("--config-file", "gone.yaml"), "gone.yaml"),
        (("--dataset", "generated_10_val", "INPUT.FORMATT", "RGB"), "INPUT.FORMAT"),
    ],
)
def test_wrong_input(
    run: Callable, capsys: pytest.CaptureFixture, arguments: tuple[str, ...], message: str
) -> None:
    try:
        assert run(*arguments) == 2
    finally:
        if NAME in DatasetCatalog:
            DatasetCatalog.remove(NAME)
            MetadataCatalog.remove(NAME)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
