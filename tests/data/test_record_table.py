# SPDX-License-Identifier: Apache-2.0
"""Records kept as arrays are the records that a plain loop makes."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.structures import BoxMode

from vastdet.data.coco_records import table_of
from vastdet.data.record_table import RecordTable
from vastdet.vocabulary import CategorySpace

NUM_IMAGES = 12
NUM_CATEGORIES = 5
# What a file may hold where a box is expected; the mapper judges it.
ODD_BOXES = [[], [1, 2], None, "box", [1, 2, 3, 4, 5], ["1", 2, 3, 4], [None] * 4, [True] * 4,
             [2**60 + 1, 0, 1, 1], [10**400, 0, 1, 1], {"x": 1}, 7]  # fmt: skip


def make_document(seed: int, *, odd: bool) -> dict[str, Any]:
    """Images in random order, some without boxes, some with crowds only."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for number in range(60):
        image_id = int(rng.integers(0, NUM_IMAGES - 2)) * 3
        annotation: dict[str, Any] = {
            "id": number,
            "image_id": image_id,
            "category_id": int(rng.integers(0, NUM_CATEGORIES)) * 10,
            "bbox": rng.uniform(0, 50, 4).tolist(),
        }
        if number % 3:
            annotation["iscrowd"] = int(image_id == 0 or rng.random() < 0.2)
        if number % 4 == 0:
            annotation["bbox"] = [int(side) for side in annotation["bbox"]]
        if number % 5 == 0:
            annotation["segmentation"] = [[1.0, 2, 3.5, 4, 5, 6]]
        annotations.append(annotation)
    if odd:
        for annotation, box in zip(annotations, ODD_BOXES, strict=False):
            annotation["bbox"] = box
        del annotations[20]["bbox"]
        annotations[21]["iscrowd"] = None
        annotations[22]["iscrowd"] = True
        annotations[23]["iscrowd"] = 2
        annotations[24]["image_id"] = 1234
    ids = rng.permutation(NUM_IMAGES).tolist()
    return {
        "images": [
            {"id": i * 3, "file_name": f"{i}.jpg", "width": 40 + i, "height": 45} for i in ids
        ],
        "categories": [{"id": k * 10, "name": str(k)} for k in range(NUM_CATEGORIES)],
        "annotations": annotations,
    }


def records_by_a_loop(document: dict[str, Any], extra_keys: tuple[str, ...]) -> list[Any]:
    """What the format of Detectron2 asks for, one image and one annotation at a time."""
    records = []
    for image in sorted(document["images"], key=lambda image: image["id"]):
        own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        records.append(
            {
                "file_name": f"root/{image['file_name']}",
                "image_id": image["id"],
                "width": image["width"],
                "height": image["height"],
                "annotations": [
                    {
                        "bbox": a.get("bbox", []),
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "category_id": a["category_id"] // 10,
                        "iscrowd": a.get("iscrowd", 0),
                        **{key: a[key] for key in extra_keys if key in a},
                    }
                    for a in own
                ],
            }
        )
    return records


def make_table(document: dict[str, Any], extra_keys: tuple[str, ...] = ()) -> RecordTable:
    space = CategorySpace.from_coco(document)
    return table_of(document, "root", space, "file.json", extra_annotation_keys=extra_keys)


@pytest.mark.parametrize("extra_keys", [(), ("segmentation", "id")])
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_records_equal_those_of_a_loop(seed: int, odd: bool, extra_keys: tuple[str, ...]) -> None:
    document = make_document(seed, odd=odd)
    expected = records_by_a_loop(document, extra_keys)
    table = make_table(document, extra_keys)
    for kind in (table, table.shared(), pickle.loads(pickle.dumps(table.shared()))):
        assert list(kind) == expected
        assert kind[-1] == expected[-1]
        assert kind[2:7:2] == expected[2:7:2]
        with pytest.raises(IndexError, match="record 12 of 12"):
            kind[NUM_IMAGES]
    types = [type(v) for r in table for a in r["annotations"] for v in a.values()]
    assert not any(issubclass(kind, np.generic) for kind in types)


def test_values_that_are_no_numbers_stay() -> None:
    document = make_document(0, odd=False)
    box = document["annotations"][0]["bbox"] = [math.nan, math.inf, 1.0, -math.inf]
    boxes = [a["bbox"] for record in make_table(document) for a in record["annotations"]]
    assert str(box) in map(str, boxes)


def test_a_record_may_be_changed() -> None:
    table = make_table(make_document(0, odd=True), ("segmentation",))
    before = list(table)
    for record in table:
        record["width"] = 0
        record["annotations"].clear()
    assert list(table) == before


@pytest.mark.parametrize("odd", [False, True])
def test_filtering_is_detectron2s(odd: bool) -> None:
    table = make_table(make_document(0, odd=odd), ("segmentation",))
    expected = filter_images_with_only_crowd_annotations(list(table))
    assert 0 < len(expected) < len(table)
    assert list(table.without_empty()) == expected


def test_two_tables_in_a_row() -> None:
    first, second = (make_table(make_document(seed, odd=True), ("id",)) for seed in (0, 1))
    both = RecordTable.concatenate([first, second])
    assert list(both) == [*first, *second]
    kept = np.arange(len(both)) % 3 == 0
    assert list(both.subset(kept)) == list(both)[::3]
    assert list(both.subset(kept & False)) == []
    expected = [k for k, record in enumerate(both) for _ in record["annotations"]]
    assert both.image_index.tolist() == expected
