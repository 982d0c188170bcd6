# SPDX-License-Identifier: Apache-2.0
"""tools/compute_image_prototypes.py on a small dataset, and its errors."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vastdet.data.register import category_space
from vastdet.text import load_category_embeddings, read_category_embeddings

RANDOM = ("--encoder", "TimmImage:test_resnet:random", "--seed", "2")


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> Callable[..., int]:
    module = load_tool("compute_image_prototypes")
    return lambda *arguments: module.main([str(argument) for argument in arguments])


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[str | Path, ...]:
    """A dataset of one image, two categories and a third without boxes, as --register takes it."""
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    boxes = [(1, 7, [2, 2, 20, 20]), (2, 4, [10, 5, 25, 20])]
    document = {
        "images": [{"id": 1, "file_name": "image.png", "height": 30, "width": 40}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, "bbox": box, "area": box[2] * box[3]}
            | {"iscrowd": 0}
            for i, c, box in boxes
        ],
        "categories": [
            {"id": i, "name": name} for i, name in ((4, "nut"), (7, "bolt"), (9, "cog"))
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    return "--register", tmp_path.name, tmp_path / "a.json", tmp_path, "--dataset", tmp_path.name


def test_writes_a_file_that_knows_its_categories(
    tool: Callable[..., int],
    dataset: tuple[str | Path, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "v.safetensors"
    assert tool(*dataset, *RANDOM, "--output", output) == 2
    assert "1 of the 3 categories have no box, the first is id 9 'cog'" in capsys.readouterr().err
    assert tool(*dataset, *RANDOM, "--fill-missing", "--output", output) == 0
    assert "3 categories" in capsys.readouterr().out
    written = read_category_embeddings(output)
    assert written.encoder == (
        "TimmImage:test_resnet:random, seed 2, at most 100 crops of a category, seed 2"
    )
    rows = load_category_embeddings(output, category_space(tmp_path.name))
    assert rows.shape == (3, written.dim)
    cosines = rows @ rows.T
    assert cosines[0, 1] < 0.9999
    np.testing.assert_allclose(cosines.diagonal(), 1, atol=1e-5)


def test_wrong_input_is_reported(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("--output", tmp_path / "v.safetensors")
    assert tool("--dataset", "no_such_data", *RANDOM, *output) == 2
    assert "no dataset 'no_such_data'" in capsys.readouterr().err
    assert tool("--dataset", "generated_24_val", "--encoder", "ViT", *output) == 2
    assert "no image encoder 'ViT'" in capsys.readouterr().err
