# SPDX-License-Identifier: Apache-2.0
"""Embeddings of categories by crops, against a plain loop over an encoder without a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image
from torch import Tensor

from vastdet.engine.image_prototypes import choose_boxes, crop, embed_crops
from vastdet.vocabulary import CategorySpace

SPACE = CategorySpace(names=("a", "b", "c"), dataset_ids=(5, 2, 9))


class ColourEncoder:
    """The mean colour of an image and its number of pixels."""

    name = "colours"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, images: Sequence[np.ndarray]) -> Tensor:
        self.batches.append(len(images))
        return torch.stack([self.embed(x) for x in images])

    def embed(self, image: np.ndarray) -> Tensor:
        vector = torch.tensor([*image.reshape(-1, 3).mean(axis=0), image.shape[0] * image.shape[1]])
        return torch.nn.functional.normalize(vector.float(), dim=0)


def annotation(category: int, box: Sequence[float], *, crowd: int = 0) -> dict[str, Any]:
    return {
        "category_id": category,
        "bbox": list(box),
        "bbox_mode": BoxMode.XYWH_ABS,
        "iscrowd": crowd,
    }


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    """Three images of 20 x 30 pixels; the second has no annotations, c is only in a crowd."""
    rng = np.random.default_rng(0)
    boxes = [
        [annotation(0, (2, 3, 10, 5)), annotation(1, (0, 0, 30, 20)), annotation(0, (5, 5, 8, 8))],
        [],
        [annotation(2, (1, 1, 9, 9), crowd=1), annotation(1, (12, 2, 6, 6))],
    ]
    found = []
    for i, own in enumerate(boxes):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
        found.append({"file_name": str(path), "annotations": own})
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_are_the_means_of_crops(records: list[dict[str, Any]], batch_size: int) -> None:
    encoder = ColourEncoder()
    with pytest.raises(ValueError, match=r"1 of the 3 categories have no box, .* id 9 'c'; --fill"):
        embed_crops(records, SPACE, encoder, batch_size=batch_size)
    found = embed_crops(records, SPACE, encoder, batch_size=batch_size, fill_missing=True)
    assert (found.names, found.dataset_ids) == (SPACE.names, SPACE.dataset_ids)
    assert found.encoder == "colours, at most 100 crops of a category, seed 0"
    assert max(encoder.batches) <= batch_size

    pixels = [np.asarray(Image.open(record["file_name"])) for record in records]
    crops = {
        0: [pixels[0][3:8, 2:12], pixels[0][5:13, 5:13]],
        1: [pixels[0], pixels[2][2:8, 12:18]],
    }
    for k, images in crops.items():
        expected = torch.stack([encoder.embed(x) for x in images]).mean(dim=0)
        torch.testing.assert_close(found.rows[k], expected / expected.norm(), rtol=0, atol=1e-6)
    others = found.rows[:2].mean(dim=0)
    torch.testing.assert_close(found.rows[2], others / others.norm())


def test_boxes_are_drawn_where_there_are_many() -> None:
    records = [{"annotations": [annotation(0, (0, 0, 1, 1))] * 30} for _ in range(4)]
    records[2]["annotations"] = [annotation(1, (0, 0, 1, 1))] * 3
    drawn = choose_boxes(records, 3, 10, seed=0)
    assert len(drawn.pop(2)) == 3
    assert sum(map(len, drawn.values())) == sum(len(set(own)) for own in drawn.values()) == 10
    assert all(own == sorted(own) for own in drawn.values())
    assert drawn != choose_boxes(records, 3, 10, seed=1)
    # Other categories change nothing.
    again = choose_boxes(records, 2, 10, seed=0)
    assert {i: own for i, own in again.items() if i != 2} == drawn


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((2.4, 3.6, 4.0, 5.0), (3, 9, 2, 7)),
        ((-5.0, -5.0, 8.0, 9.0), (0, 4, 0, 3)),
        ((4.0, 4.0, 0.0, 0.0), (4, 5, 4, 5)),
        ((29.5, 19.5, 9.0, 9.0), (19, 20, 29, 30)),
        ((50.0, 60.0, 3.0, 3.0), (19, 20, 29, 30)),
    ],
    ids=["fractions", "over the edge", "no size", "last pixel", "outside"],
)
def test_a_crop_is_of_whole_pixels_of_the_image(
    box: Sequence[float], expected: tuple[int, int, int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    y0, y1, x0, x1 = expected
    np.testing.assert_array_equal(crop(image, annotation(0, box)), image[y0:y1, x0:x1])


def test_wrong_numbers_and_no_boxes_are_errors(records: list[dict[str, Any]]) -> None:
    for wrong in ({"max_crops": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            embed_crops(records, SPACE, ColourEncoder(), **wrong)
    with pytest.raises(ValueError, match="no boxes to crop"):
        embed_crops(records[1:2], SPACE, ColourEncoder())
