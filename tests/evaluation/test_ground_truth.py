# SPDX-License-Identifier: Apache-2.0
"""Ground truth from files and from dataset dicts, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.structures import BoxMode

from vastdet.evaluation.ground_truth import (
    from_coco,
    from_json,
    from_records,
    with_training_counts,
)
from vastdet.vocabulary import CategorySpace

CONTENT = {
    "images": [{"id": 9, "height": 4, "width": 6}, {"id": 2, "height": 3, "width": 5}],
    "categories": [
        {"id": 7, "name": "owl", "frequency": "r"},
        {"id": 4, "name": "cat", "frequency": "f"},
    ],
    "annotations": [
        {"image_id": 9, "category_id": 4, "bbox": [1, 2, 3, 4]},
        {"image_id": 2, "category_id": 7, "bbox": [0, 0, 1, 1], "area": 0.5, "iscrowd": 1},
    ],
}


def test_ids_become_numbers_in_sorted_order() -> None:
    truth = from_coco(CONTENT)
    assert truth.image_ids == (2, 9)
    assert truth.image_sizes.tolist() == [[3, 5], [4, 6]]
    assert truth.space.names == ("cat", "owl")
    assert truth.space.dataset_ids == (4, 7)
    assert truth.space.frequency == ("f", "r")
    assert truth.image_index.tolist() == [1, 0]
    assert truth.category_index.tolist() == [0, 1]
    assert truth.areas.tolist() == [12, 0.5]
    assert truth.is_crowd.tolist() == [False, True]
    assert truth.segmentations is None


def test_the_given_space_decides_contiguous_ids() -> None:
    space = CategorySpace(names=("owl", "yak", "cat"), dataset_ids=(7, 5, 4))
    truth = from_coco(CONTENT, space)
    assert truth.space is space
    assert truth.category_index.tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"1 annotations have a category_id.*first 4"):
        from_coco(CONTENT, CategorySpace(names=("owl",), dataset_ids=(7,)))


def test_text_ids_and_shared_names() -> None:
    content = {
        "images": [{"id": "b"}, {"id": "a"}],
        "categories": [{"id": 1, "name": "bat"}, {"id": 2, "name": "bat"}],
        "annotations": [],
    }
    truth = from_coco(content)
    assert truth.image_ids == ("a", "b")
    assert truth.labels == ("bat (1)", "bat (2)")
    assert truth.image_sizes.tolist() == [[0, 0], [0, 0]]
    assert truth.boxes.shape == (0, 4)


def test_records_equal_the_file() -> None:
    polygon = [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0]]
    records = [
        {
            "image_id": 9,
            "height": 10,
            "width": 10,
            "annotations": [
                {"bbox": [1, 2, 4, 6], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
                {
                    "bbox": np.array([0, 0, 5, 5]),
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 0,
                    "iscrowd": 1,
                    "segmentation": polygon,
                },
            ],
        },
        {"image_id": 2, "height": 10, "width": 10},
    ]
    truth = from_records(records, CategorySpace(names=("cat", "owl"), dataset_ids=(40, 70)))
    assert truth.image_ids == (2, 9)
    assert truth.boxes.tolist() == [[1, 2, 3, 4], [0, 0, 5, 5]]
    assert truth.areas.tolist() == [12, 16]  # of the mask, where there is one
    assert truth.is_crowd.tolist() == [False, True]
    assert truth.space.dataset_ids == (40, 70)
    assert truth.category_index.tolist() == [1, 0]
    assert truth.segmentations == [None, polygon]


def test_training_counts(tmp_path: Path) -> None:
    box = {"bbox": [0, 0, 1, 1]}
    rows = [(1, 4), (1, 4), (2, 4), (1, 7)]
    training = {
        "images": [{"id": i} for i in (1, 2, 3)],
        "categories": CONTENT["categories"],
        "annotations": [{"image_id": i, "category_id": k, **box} for i, k in rows],
    }
    training["annotations"].append({"image_id": 3, "category_id": 7, "iscrowd": 1, **box})
    (tmp_path / "train.json").write_text(json.dumps(training))
    truth = from_coco(CONTENT)
    counted = with_training_counts(truth, tmp_path / "train.json")
    assert counted.space.image_counts == (2, 1)
    assert counted.space.instance_counts == (3, 1)
    assert counted.space.frequency == ("f", "r")  # as the dataset states
    assert counted.boxes is truth.boxes
    plain = [{"id": c["id"], "name": c["name"]} for c in CONTENT["categories"]]
    plain.append({"id": 9, "name": "yak"})
    counted = with_training_counts(
        from_coco({**CONTENT, "categories": plain}), tmp_path / "train.json"
    )
    assert counted.space.frequency == ("r", "r", None)  # LVIS's thresholds; no yak in training
    assert counted.space.image_counts == (2, 1, 0)


def test_training_set_without_annotations(tmp_path: Path) -> None:
    content = {"images": [], "categories": CONTENT["categories"]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train.json lists no annotations"):
        with_training_counts(from_coco(CONTENT), tmp_path / "train.json")


def test_lists_of_lvis() -> None:
    images = [
        {"id": 9, "neg_category_ids": [7, 4], "not_exhaustive_category_ids": []},
        {"id": 2, "neg_category_ids": [], "not_exhaustive_category_ids": [7]},
    ]
    truth = from_coco({**CONTENT, "images": images})
    assert truth.absent.tolist() == [[1, 1], [1, 0]]
    assert truth.incomplete.tolist() == [[0, 1]]
    records = [
        {"image_id": 9, "neg_category_ids": [1, 0], "not_exhaustive_category_ids": []},
        {"image_id": 2, "neg_category_ids": [], "not_exhaustive_category_ids": [1]},
    ]
    same = from_records(records, truth.space)
    assert same.absent.tolist() == truth.absent.tolist()
    assert same.incomplete.tolist() == truth.incomplete.tolist()
    plain = from_coco(CONTENT)
    assert plain.absent is None
    assert plain.incomplete is None


def test_take_keeps_the_images() -> None:
    truth = from_coco(CONTENT).take(np.array([1]))
    assert truth.image_ids == (2, 9)
    assert truth.boxes.tolist() == [[0, 0, 1, 1]]
    assert truth.is_crowd.tolist() == [True]


def test_records_with_a_category_out_of_range() -> None:
    annotation = {"bbox": [0, 0, 1, 1], "category_id": 2}
    records = [{"image_id": 3, "annotations": [annotation]}]
    with pytest.raises(ValueError, match=r"image 3 of zoo has category 2, expected 0\.\.1"):
        from_records(records, CategorySpace.from_names(["cat", "owl"]), source="zoo")


def changed(key: str, index: int, **values) -> dict:
    content = json.loads(json.dumps(CONTENT))
    content[key][index].update(values)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed("images", 0, id=2), "image id 2 is listed more than once"),
        (changed("categories", 0, id=4), "category ids must be unique"),
        (changed("annotations", 0, image_id=1), "1 annotations have a image_id.*first 1;"),
        (changed("annotations", 1, category_id=8), "1 annotations have a category_id.*first 8;"),
        (changed("images", 1, neg_category_ids=[8]), "1 images have a neg_category_ids.*first 8;"),
    ],
)
def test_inconsistent_files(content: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_coco(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected an object with the keys images, annotations and categories, got a list"),
        ('{"boxes": 1}', "got an object with the keys boxes"),
        ('{"images": [', "is not valid JSON"),
    ],
)
def test_files_that_are_not_coco(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        from_json(tmp_path / "truth.json")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json does not exist"):
        from_json(tmp_path / "absent.json")


def test_lvis_and_v3det_files_are_read(shared_data: Path) -> None:
    lvis = from_json(shared_data / "eval_fixtures/lvis_val_100/lvis_val_100.json")
    assert set(lvis.space.frequency) == {"r", "c", "f"}
    assert len(lvis.image_ids) == 100
    v3det = from_json(shared_data / "eval_fixtures/v3det_mini/gt.json")
    assert v3det.num_categories == len(v3det.space) > 0
