# SPDX-License-Identifier: Apache-2.0
"""What loaders are given of a dataset, and what the log says of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from vastdet.data import build_test_loader, register_coco
from vastdet.data.records import load_records, load_test_records

FILE, LISTED = "records_file", "records_listed"
NUM_CATEGORIES = 5_000


@pytest.fixture
def document() -> dict[str, Any]:
    """Two images, one without boxes, and a vast vocabulary."""
    return {
        "images": [{"id": k, "file_name": f"{k}.jpg", "width": 20, "height": 10} for k in (1, 2)],
        "categories": [{"id": k, "name": f"kind {k}"} for k in range(NUM_CATEGORIES)],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 7, "bbox": [1, 1, 5, 5], "iscrowd": k % 2}
            for k in range(4)
        ],
    }


@pytest.fixture
def both(tmp_path: Path, document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The same dataset from its file, and as a list that somebody else registered."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    register_coco(FILE, path, tmp_path)
    DatasetCatalog.register(LISTED, lambda: list(DatasetCatalog.get(FILE)))
    MetadataCatalog.get(LISTED).thing_classes = [c["name"] for c in document["categories"]]
    yield FILE, LISTED
    for name in (FILE, LISTED):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_evaluation_of_a_vast_vocabulary_has_one_line_in_the_log(
    both: tuple[str, str], cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.DATALOADER.NUM_WORKERS = 0
    for name in both:
        caplog.clear()
        with caplog.at_level("INFO"):
            loader = build_test_loader(cfg, name, mapper=lambda record: record)
        assert [batch[0]["image_id"] for batch in loader] == [1, 2]
        (message,) = [r.getMessage() for r in caplog.records if "boxes" in r.getMessage()]
        assert message == (
            f"2 images, 2 boxes; 1 of {NUM_CATEGORIES} categories have boxes. Most: kind 7 (2). "
            "Fewest: kind 7 (2)"
        )
        assert all(record.getMessage().count("\n") < 3 for record in caplog.records)


def test_records_of_both_are_equal(both: tuple[str, str], cfg: CfgNode) -> None:
    found = [list(load_test_records(cfg, name)) for name in both]
    assert found[0] == found[1]
    assert [len(record["annotations"]) for record in found[0]] == [4, 0]


def test_a_dataset_without_boxes(both: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    DatasetCatalog.remove(LISTED)
    DatasetCatalog.register(LISTED, lambda: [{"file_name": "a.jpg", "image_id": 1}])
    with caplog.at_level("INFO"):
        assert len(load_records([LISTED], "DATASETS.TEST", filter_empty=False)) == 1
    assert "1 images, no boxes" in caplog.text


@pytest.mark.parametrize("category", [NUM_CATEGORIES, -1])
def test_a_category_that_is_none_of_the_datasets(both: tuple[str, str], category: int) -> None:
    records = list(DatasetCatalog.get(FILE))
    records[0]["annotations"][2]["category_id"] = category
    DatasetCatalog.remove(LISTED)
    DatasetCatalog.register(LISTED, lambda: records)
    with pytest.raises(ValueError, match=rf"boxes of category {category}; expected ids of 0 to"):
        load_records([LISTED], "DATASETS.TRAIN", filter_empty=True)


def test_no_image(both: tuple[str, str], cfg: CfgNode) -> None:
    DatasetCatalog.remove(LISTED)
    DatasetCatalog.register(LISTED, list)
    with pytest.raises(ValueError, match=r"DATASETS\.TEST .* holds no usable record"):
        build_test_loader(cfg, LISTED)
