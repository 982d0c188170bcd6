# SPDX-License-Identifier: Apache-2.0
"""register_coco, category_space and the records of COCO-format files."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.structures import BoxMode

from vastdet.data import category_space, register_coco, register_v3det
from vastdet.data.coco_records import load_coco_table
from vastdet.vocabulary import CategorySpace

Document = dict[str, Any]


@pytest.fixture(autouse=True)
def catalogs_as_before() -> Iterator[None]:
    """Take the datasets that a test registers out again."""
    before = [(catalog, set(catalog.list())) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, names in before:
        for name in set(catalog.list()) - names:
            catalog.remove(name)


@pytest.fixture
def document() -> Document:
    """Two images, ids out of order, category ids with gaps; image 3 has no boxes."""
    return {
        "images": [
            {"id": 9, "file_name": "b.jpg", "width": 40, "height": 30},
            {"id": 3, "file_name": "sub/a.jpg", "width": 20, "height": 10},
        ],
        "categories": [{"id": 70, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 70, "bbox": [1, 2, 3, 4], "area": 12},
            {"id": 2, "image_id": 9, "category_id": 5, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    }


def write(folder: Path, document: Any, name: str = "train.json") -> Path:
    (folder / "images").mkdir(exist_ok=True)
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_records_are_detectron2s(tmp_path: Path, document: Document) -> None:
    register_coco("mine", write(tmp_path, document), tmp_path / "images")
    first, second = DatasetCatalog.get("mine")
    assert first == {
        "file_name": str(tmp_path / "images/sub/a.jpg"),
        "image_id": 3,
        "width": 20,
        "height": 10,
        "annotations": [],
    }
    assert second["annotations"] == [
        {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0},
        {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1},
    ]


def test_records_equal_those_of_detectron2(shared_data: Path) -> None:
    arguments = (shared_data / "bccd/annotations/val.json", shared_data / "bccd/images")
    register_coco("ours", *arguments)
    register_coco_instances("theirs", {}, *map(str, arguments))
    assert DatasetCatalog.get("ours") == DatasetCatalog.get("theirs")
    ours, theirs = MetadataCatalog.get("ours"), MetadataCatalog.get("theirs")
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id", "json_file", "image_root"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.evaluator_type == theirs.evaluator_type == "coco"


def test_nothing_is_read_before_use(tmp_path: Path, document: Document) -> None:
    register_coco("mine", tmp_path / "train.json", tmp_path / "images")
    metadata = MetadataCatalog.get("mine")
    with pytest.raises(FileNotFoundError, match=r"'mine' needs .*train\.json"):
        metadata.get("thing_classes")
    write(tmp_path, document)
    assert metadata.thing_classes == ["dog", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 70: 1}
    assert category_space("mine") is category_space("mine")
    assert not hasattr(metadata, "stuff_classes")


def test_the_categories_need_no_annotations(tmp_path: Path, document: Document) -> None:
    cut = json.dumps({key: document[key] for key in ("images", "categories", "annotations")})[:-9]
    register_coco("mine", write(tmp_path, cut), tmp_path / "images")
    assert len(category_space("mine")) == 2
    with pytest.raises(ValueError, match="not valid JSON"):
        DatasetCatalog.get("mine")


def test_registering_again(tmp_path: Path) -> None:
    MetadataCatalog.get("mine")  # looking at a name does not take it
    register_coco("mine", "a.json", "images")
    register_coco("mine", Path("a.json"), Path("images"))
    with pytest.raises(ValueError, match=r"'mine' is taken .*a\.json.*b\.json.* another name"):
        register_coco("mine", "b.json", "images")
    with pytest.raises(ValueError, match="'coco_2017_val' is taken"):
        register_coco("coco_2017_val", "b.json", "images")
    DatasetCatalog.register("bare", list)
    with pytest.raises(ValueError, match="'bare' is taken"):
        register_coco("bare", "b.json", "images")


def test_v3dets_format_has_a_tree(tmp_path: Path, document: Document) -> None:
    tree = tmp_path / "tree.json"
    arguments = (write(tmp_path, document), tmp_path / "images")
    register_v3det("mine", *arguments, tree)
    register_v3det("mine", *arguments, tree)
    with pytest.raises(ValueError, match="'mine' is taken"):
        register_v3det("mine", *arguments, "another.json")
    with pytest.raises(ValueError, match="'mine' is taken"):
        register_coco("mine", *arguments)
    with pytest.raises(FileNotFoundError, match=r"'mine' needs .*tree\.json"):
        category_space("mine")
    tree.write_text(
        json.dumps(
            {
                "categoryid2treeid": {"70": "n1", "5": "n2"},
                "father2child": {"n1": ["n2"]},
                "child2father": {"n2": ["n1"]},
            }
        )
    )
    hierarchy = category_space("mine").hierarchy
    assert hierarchy is not None
    assert hierarchy.edges.tolist() == [[hierarchy.category_nodes[1], hierarchy.category_nodes[0]]]
    assert len(DatasetCatalog.get("mine")) == 2
    assert MetadataCatalog.get("mine").evaluator_type == "v3det"


def test_numbers_of_images_reach_detectron2s_federated_loss(
    tmp_path: Path, document: Document
) -> None:
    register_coco("without", write(tmp_path, document), tmp_path / "images")
    assert MetadataCatalog.get("without").get("class_image_count") is None
    assert "class_image_count" not in MetadataCatalog.get("without").as_dict()
    for category, count in zip(document["categories"], (4, 9), strict=True):
        category["image_count"] = count
    register_coco("mine", write(tmp_path, document, "counted.json"), tmp_path / "images")
    # In the order of the contiguous ids: those of the file, ascending.
    assert get_fed_loss_cls_weights("mine", 0.5).tolist() == [3.0, 2.0]
    stated = MetadataCatalog.get("mine").as_dict()["class_image_count"]
    assert stated == [{"id": 5, "image_count": 9}, {"id": 70, "image_count": 4}]


def test_a_missing_image_folder_is_an_error(tmp_path: Path, document: Document) -> None:
    register_coco("mine", write(tmp_path, document), tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere, which does not exist; .*--register"):
        DatasetCatalog.get("mine")


@pytest.mark.parametrize("value", [None, "some/place"])
def test_the_error_tells_the_variable(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    else:
        monkeypatch.setenv("DETECTRON2_DATASETS", value)
    register_coco("mine", f"{value or 'datasets'}/mine/no.json", "images")
    expected = "DETECTRON2_DATASETS is not set" if value is None else f"DETECTRON2_DATASETS={value}"
    with pytest.raises(FileNotFoundError, match=expected):
        category_space("mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "'images' is empty or missing"),
        ({"categories": []}, "'categories' is empty or missing"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": 3}]}, "has no height"),
        ({"images": [{"id": 1, "width": 3, "height": 3}]}, "has no file_name"),
        ({"images": [{"id": 1, "file_name": "a", "width": 3, "height": 3}] * 2}, "image id 1"),
        (
            {"annotations": [{"image_id": 9, "category_id": 6, "bbox": [0, 0, 1, 1]}]},
            r"list: \[6\]",
        ),
    ],
)
def test_files_that_make_no_sense_are_errors(
    change: Document, message: str, tmp_path: Path, document: Document
) -> None:
    path = write(tmp_path, {**document, **change})
    register_coco("mine", path, tmp_path / "images")
    with pytest.raises(ValueError, match=message) as caught:
        DatasetCatalog.get("mine")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"images": [{}]}'])
def test_files_of_another_kind_are_errors(text: str, tmp_path: Path) -> None:
    register_coco("mine", write(tmp_path, text), tmp_path / "images")
    with pytest.raises(ValueError, match=r"train\.json"):
        DatasetCatalog.get("mine")


def test_a_list_where_an_object_is_expected(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json holds a list; expected an object"):
        load_coco_table(tmp_path / "list.json", "r", CategorySpace.from_names(["a"]))


def test_annotations_of_unknown_images_are_counted(
    tmp_path: Path, document: Document, caplog: pytest.LogCaptureFixture
) -> None:
    document["annotations"][0]["image_id"] = 1234
    register_coco("mine", write(tmp_path, document), tmp_path / "images")
    records = DatasetCatalog.get("mine")
    assert sum(len(record["annotations"]) for record in records) == 1
    assert "1 of 2 annotations belong to no image" in caplog.text


def test_a_test_set_without_annotations(tmp_path: Path, document: Document) -> None:
    del document["annotations"]
    register_coco("mine", write(tmp_path, document), tmp_path / "images")
    assert [record["annotations"] for record in DatasetCatalog.get("mine")] == [[], []]


def test_broken_boxes_reach_the_mapper(tmp_path: Path, document: Document) -> None:
    del document["annotations"][0]["bbox"]
    register_coco("mine", write(tmp_path, document), tmp_path / "images")
    assert DatasetCatalog.get("mine")[1]["annotations"][0]["bbox"] == []


def test_a_file_that_changed_its_categories_is_an_error(tmp_path: Path, document: Document) -> None:
    register_coco("mine", write(tmp_path, document), tmp_path / "images")
    assert len(category_space("mine")) == 2
    changed = copy.deepcopy(document)
    changed["categories"].append({"id": 6, "name": "cow"})
    write(tmp_path, changed)
    with pytest.raises(ValueError, match=r"has 3 categories, .* registered with 2.*\[6\]"):
        DatasetCatalog.get("mine")


def test_lvis_lists_are_contiguous_and_files_found_by_url(tmp_path: Path) -> None:
    document = {
        "images": [
            {"id": 1, "width": 2, "height": 2, "coco_url": "http://x/val2017/000000000001.jpg",
             "neg_category_ids": [40, 30], "not_exhaustive_category_ids": []}
        ],
        "categories": [{"id": i, "name": str(i), "frequency": "r"} for i in (30, 40)],
        "annotations": [
            {"image_id": 1, "category_id": 40, "bbox": [0, 0, 1, 1], "segmentation": [[1] * 6]}
        ],
    }  # fmt: skip
    space = CategorySpace.from_lvis(document)
    path = write(tmp_path, document)
    (record,) = load_coco_table(path, "r", space, extra_annotation_keys=("segmentation",))
    assert record["file_name"] == "r/val2017/000000000001.jpg"
    assert record["neg_category_ids"] == [1, 0]
    assert record["not_exhaustive_category_ids"] == []
    assert record["annotations"][0]["segmentation"] == [[1] * 6]


# category_space of datasets that other code registers --------------------------------------------


def test_space_of_detectron2s_registration(tmp_path: Path, document: Document) -> None:
    register_coco_instances("theirs", {}, str(write(tmp_path, document)), str(tmp_path))
    assert category_space("theirs").dataset_ids == (5, 70)


def test_space_of_thing_classes_and_of_a_loader_that_sets_them() -> None:
    DatasetCatalog.register("plain", list)
    MetadataCatalog.get("plain").thing_classes = ["a", "b"]
    assert category_space("plain").names == ("a", "b")

    def load() -> list[Any]:
        MetadataCatalog.get("late").thing_classes = ["c"]
        return []

    DatasetCatalog.register("late", load)
    assert category_space("late").names == ("c",)


def test_space_of_no_dataset() -> None:
    with pytest.raises(ValueError, match="did you mean coco_2017_val"):
        category_space("coco_2017_vall")
    DatasetCatalog.register("silent", list)
    with pytest.raises(ValueError, match="'silent' has no thing_classes"):
        category_space("silent")
    assert "nowhere" not in MetadataCatalog
    with pytest.raises(ValueError, match="no dataset 'nowhere'"):
        category_space("nowhere")
    assert "nowhere" not in MetadataCatalog


def test_space_of_a_generated_dataset() -> None:
    space = category_space("generated_24_train")
    assert len(space) == 24
    assert space.hierarchy is not None
    assert space.hierarchy.num_levels >= 3
    assert space.novel is not None
