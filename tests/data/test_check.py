# SPDX-License-Identifier: Apache-2.0
"""The data check: every kind of trouble is made here, found, and mended."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from rich.console import Console

from vastdet.data.check import check_dataset, from_registered
from vastdet.data.check.source import load_dataset
from vastdet.vocabulary import CategorySpace

NAN, INF = float("nan"), float("inf")

Dataset = dict[str, Any]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three pictures: 0.png and 1.png of 60x40 pixels, 2.jpg of 60x40 stored on its side."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        Image.new("RGB", (60, 40), (10 * index, 50, 90)).save(folder / f"{index}.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 60)).save(folder / "2.jpg", exif=exif)
    return folder


@pytest.fixture
def dataset() -> Dataset:
    """Sound annotations of the three pictures."""
    files = ["0.png", "1.png", "2.jpg"]
    images = [{"id": i, "file_name": f, "width": 60, "height": 40} for i, f in enumerate(files)]
    boxes = [[0, 5, 20, 30], [10, 10, 30, 25], [0, 0, 60, 40], [2.5, 3.5, 8, 9]]
    annotations = [
        {"id": i + 1, "image_id": i % 3, "category_id": 1 + i % 2, "bbox": box, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def problems(dataset: Dataset, image_root: Path | None = None, **options: Any) -> dict[str, int]:
    report = check_dataset(dataset, image_root, **options).report
    return {finding.kind.key: finding.count for finding in report.problems}


def test_sound_data_is_clean(dataset: Dataset, images: Path) -> None:
    checked = check_dataset(dataset, images)
    assert checked.report.is_clean
    assert checked.report.num_images_read == 3
    assert checked.report.count("EXIF rotation") == 1
    assert checked.report.to_dict()["clean"] is True


def test_nothing_at_all_is_clean() -> None:
    assert problems({"images": [], "annotations": [], "categories": []}) == {}


@pytest.mark.parametrize(
    ("box", "key"),
    [
        ([NAN, 0, 5, 5], "NaN or infinite box"),
        ([0, 0, INF, 5], "NaN or infinite box"),
        ([5, 5, 0, 5], "box without area"),
        ([5, 5, 5, -2], "box without area"),
        ([60, 5, 5, 5], "box outside"),
        ([-9, -9, 5, 5], "box outside"),
        ([50, 30, 20, 20], "box beyond the border"),
        ([-2, 0, 10, 10], "box beyond the border"),
        ([1, 2, 3], "malformed box"),
        (None, "malformed box"),
        (["a", 1, 2, 3], "malformed box"),
    ],
)
def test_bad_boxes(dataset: Dataset, box: Any, key: str) -> None:
    dataset["annotations"][1]["bbox"] = box
    checked = check_dataset(dataset, None)
    assert [f.kind.key for f in checked.report.problems] == [key]
    example = checked.report.problems[0].examples[0]
    assert example.startswith("annotation 2, image 1 (1.png 60x40)")


def test_a_pixel_over_the_border_is_tolerated(dataset: Dataset) -> None:
    dataset["annotations"][1]["bbox"] = [-1, 0, 62, 41]
    assert problems(dataset) == {}


def test_references(dataset: Dataset) -> None:
    dataset["annotations"][0]["image_id"] = 77
    dataset["annotations"][1]["category_id"] = "dog"
    dataset["annotations"][2]["id"] = 4
    del dataset["annotations"][3]["id"]
    assert problems(dataset) == {
        "box of no image": 1,
        "unknown category": 1,
        "duplicate annotation id": 1,
    }
    dataset["annotations"][3]["id"] = 4
    assert problems(dataset)["duplicate annotation id"] == 1


def test_ids(dataset: Dataset) -> None:
    dataset["images"].append(dict(dataset["images"][0], file_name="other.png"))
    dataset["categories"].append({"id": 1, "name": "bird"})
    assert problems(dataset) == {"duplicate image id": 1, "duplicate category id": 1}


def test_notes_do_not_spoil_a_clean_report(dataset: Dataset) -> None:
    dataset["images"].append(dict(dataset["images"][0], id=9))
    dataset["categories"] += [{"id": 3, "name": "dog"}, {"id": 4, "name": "bird"}]
    dataset["annotations"][0].update(iscrowd=1, id=0)
    report = check_dataset(dataset, None).report
    assert report.is_clean
    counts = {finding.kind.key: finding.count for finding in report.notes}
    assert counts == {
        "file listed twice": 1,
        "image without boxes": 1,
        "annotation id 0": 1,
        "crowd": 1,
        "duplicate category name": 1,
        "category without boxes": 2,
    }


def test_category_without_a_name(dataset: Dataset) -> None:
    del dataset["categories"][0]["name"]
    assert problems(dataset) == {"category without name": 1}


def brute_force_duplicates(dataset: Dataset) -> set[int]:
    """Pairs compared one by one; the later of each pair."""
    found = set()
    for j, b in enumerate(dataset["annotations"]):
        for a in dataset["annotations"][:j]:
            if (a["image_id"], a["category_id"]) != (b["image_id"], b["category_id"]):
                continue
            (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
            w = min(ax + aw, bx + bw) - max(ax, bx)
            h = min(ay + ah, by + bh) - max(ay, by)
            inter = max(w, 0) * max(h, 0)
            if inter / (aw * ah + bw * bh - inter) >= 0.99:
                found.add(j)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_duplicates_equal_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(5, 400, (150, 4))
    copies = boxes[rng.integers(0, 150, 150)]
    copies = copies + rng.normal(0, 0.004, copies.shape) * copies.mean(axis=1, keepdims=True)
    boxes = np.concatenate([boxes, copies])[rng.permutation(300)].clip(min=1)
    annotations = [
        {
            "id": i + 1,
            "image_id": int(rng.integers(2)),
            "category_id": int(rng.integers(2)),
            "bbox": box.tolist(),
        }
        for i, box in enumerate(boxes)
    ]
    dataset = {
        "images": [{"id": i, "file_name": str(i), "width": 2000, "height": 2000} for i in (0, 1)],
        "annotations": annotations,
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }
    expected = brute_force_duplicates(dataset)
    checked = check_dataset(dataset, None)
    assert len(expected) > 3
    assert set(np.flatnonzero(checked.repair.annotations.drop).tolist()) == expected


def test_crowds_and_other_categories_are_no_duplicates(dataset: Dataset) -> None:
    first = dataset["annotations"][0]
    dataset["annotations"] += [
        dict(first, id=20, category_id=2),
        dict(first, id=21, iscrowd=1),
        dict(first, id=22, image_id=1),
    ]
    assert problems(dataset) == {}
    dataset["annotations"].append(dict(first, id=23))
    assert problems(dataset) == {"duplicate box": 1}


def test_image_files(dataset: Dataset, images: Path) -> None:
    (images / "0.png").unlink()
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:-30])
    dataset["images"][2].update(width=40, height=60)
    dataset["images"].append({"id": 3, "width": 1, "height": 1})
    report = check_dataset(dataset, images).report
    assert {f.kind.key: f.count for f in report.problems} == {
        "missing image": 2,
        "unreadable image": 1,
        "wrong size": 1,
    }
    examples = {f.kind.key: f.examples[0] for f in report.problems}
    assert "0.png" in examples["missing image"]
    assert "1.png" in examples["unreadable image"]
    assert (
        "recorded 40x60 (as before its EXIF rotation), the file has 60x40"
        in (examples["wrong size"])
    )


def test_lvis_entries_without_file_name(dataset: Dataset, images: Path) -> None:
    for image in dataset["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/{images.name}/{image.pop('file_name')}"
    assert problems(dataset, images.parent) == {}


def test_missing_folder(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"image folder .*nowhere does not exist"):
        check_dataset(dataset, tmp_path / "nowhere")


def test_missing_file_and_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        check_dataset(tmp_path / "gone.json", None)
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"list\.json holds a list; expected a COCO-format"):
        check_dataset(tmp_path / "list.json", None)
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"half\.json.*not valid JSON"):
        check_dataset(tmp_path / "half.json", None)
    with pytest.raises(ValueError, match="no list of objects under 'annotations'"):
        check_dataset({"images": [], "annotations": {}, "categories": []}, None)
    with pytest.raises(ValueError, match=r"entry no\. 0 of 'images' has no id"):
        check_dataset({"images": [{}], "annotations": [], "categories": []}, None)
    bad = {"images": [], "annotations": [{"image_id": []}], "categories": []}
    with pytest.raises(ValueError, match="image_id must be a number or text"):
        check_dataset(bad, None)
    with pytest.raises(ValueError, match="box_format is 'yolo'"):
        check_dataset({}, None, box_format="yolo")  # type: ignore[arg-type]


def xyxy_dataset(dataset: Dataset) -> Dataset:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform([0, 0], [60, 40], (30, 2, 2)), axis=1).reshape(30, 4)
    dataset["annotations"] = [
        {"id": i + 1, "image_id": 0, "category_id": 1, "bbox": box, "area": 1.0}
        for i, box in enumerate(corners.tolist())
    ]
    return dataset


def test_xyxy_is_suspected_and_converted_on_demand(dataset: Dataset, tmp_path: Path) -> None:
    xyxy_dataset(dataset)
    checked = check_dataset(dataset, None)
    assert checked.report.count("XYXY suspected") == 30
    with pytest.raises(ValueError, match=r"look like \[x1, y1, x2, y2\]"):
        checked.write_fixed(tmp_path / "fixed.json")
    assert not (tmp_path / "fixed.json").exists()
    assert problems(dataset, box_format="xyxy") == {}
    done = check_dataset(dataset, None, box_format="xyxy").write_fixed(tmp_path / "fixed.json")
    assert done == ["30 boxes rewritten from XYXY to XYWH"]
    assert problems(tmp_path / "fixed.json") == {}
    x1, y1, x2, y2 = dataset["annotations"][7]["bbox"]
    fixed = json.loads((tmp_path / "fixed.json").read_text())["annotations"][7]
    np.testing.assert_allclose(fixed["bbox"], [x1, y1, x2 - x1, y2 - y1])
    np.testing.assert_allclose(fixed["area"], (x2 - x1) * (y2 - y1))
    assert "XYXY suspected" not in problems(dataset, box_format="xywh")


def test_xywh_is_not_suspected(shared_data: Path) -> None:
    for name in ("bccd/annotations/train.json", "coco_cc/annotations/train.json"):
        assert "XYXY suspected" not in problems(shared_data / name)


def test_category_space(dataset: Dataset) -> None:
    space = CategorySpace.from_coco(dataset)
    assert problems(dataset, category_space=space) == {}
    dataset["categories"][0]["name"] = "lion"
    dataset["categories"].append({"id": 5, "name": "bird"})
    report = check_dataset(dataset, None, category_space=space).report
    (finding,) = report.problems
    assert finding.kind.key == "other categories"
    assert finding.examples == (
        "category 5 'bird' is not in the space",
        "category 1 is 'lion' here and 'cat' in the space",
    )


@pytest.fixture
def tree() -> Dataset:
    """animal above cat and dog."""
    return {
        "categoryid2treeid": {"1": "n1", "2": "n2"},
        "id2name": {"n0": "animal", "n1": "cat", "n2": "dog"},
        "father2child": {"n0": ["n1", "n2"]},
        "child2father": {"n1": ["n0"], "n2": ["n0"]},
    }


def test_sound_tree(dataset: Dataset, tree: Dataset) -> None:
    assert problems(dataset, tree=tree) == {}


def test_tree_with_cycles(dataset: Dataset, tree: Dataset) -> None:
    tree["father2child"].update(n1=["n3"], n3=["n0"], n2=["n2"])
    tree["id2name"]["n3"] = "kitten"
    del tree["child2father"]
    report = check_dataset(dataset, None, tree=tree).report
    assert report.count("tree cycle") == 2
    (finding,) = report.problems
    assert any(sorted(set(e.split(" -> "))) == ["n0", "n1", "n3"] for e in finding.examples)
    assert "n2 -> n2" in finding.examples


def test_tree_mismatches(dataset: Dataset, tree: Dataset) -> None:
    tree["categoryid2treeid"] = {"1": "n1", "8": "n8"}
    tree["father2child"]["n1"] = ["n9"]
    assert problems(dataset, tree=tree) == {
        "category not in tree": 1,
        "tree category unknown": 1,
        "tree node unknown": 2,
        "tree inconsistent": 1,
    }
    with pytest.raises(ValueError, match="no 'categoryid2treeid'"):
        check_dataset(dataset, None, tree={"nodes": []})


def test_real_trees_are_sound(shared_data: Path) -> None:
    mini = shared_data / "eval_fixtures/v3det_mini"
    report = check_dataset(mini / "gt.json", None, tree=mini / "category_tree.json").report
    assert not report.count("tree cycle")
    assert not report.count("tree node unknown")
    meta = shared_data / "v3det_meta"
    categories = json.loads((meta / "v3det_2023_v1_train_cat_info.json").read_text())
    categories = categories if isinstance(categories, list) else categories["categories"]
    whole = {"images": [], "annotations": [], "categories": categories}
    report = check_dataset(whole, None, tree=meta / "v3det_category_tree_from_wordnet.json").report
    assert report.is_clean
    assert report.count("category without boxes") == 13204


def break_everything(dataset: Dataset, images: Path) -> None:
    """One or more of every kind of problem that a copy can mend."""
    sound = copy.deepcopy(dataset["annotations"][0])
    for place, box in enumerate(
        ([NAN] * 4, [1, 1, 0, 0], [99, 99, 5, 5], [50, 30, 20, 20], [52, 30, 20, 20], [1], None)
    ):
        dataset["annotations"].append(dict(sound, id=50 + place, bbox=box, area=1.0))
    dataset["annotations"] += [
        dict(sound, id=70),
        dict(sound, id=71, bbox=[0, 0, 9, 9], category_id=99),
        dict(sound, id=72, bbox=[0, 0, 9, 9], image_id=99),
        dict(sound, id=1, bbox=[3, 3, 9, 9]),
        dict(sound, id=0, bbox=[3, 3, 5, 5]),
        dict(sound, id=None, bbox=[3, 3, 7, 5]),
        dict(sound, id=80, image_id=10),
        dict(sound, id=81, image_id=11),
        dict(sound, id=82, image_id=12),
    ]
    del dataset["images"][1]["height"]
    (images / "empty.png").touch()
    dataset["images"] += [
        {"id": 0, "file_name": "1.png", "width": 60, "height": 40},
        {"id": 10, "file_name": "gone.png", "width": 60, "height": 40},
        {"id": 11, "file_name": "empty.png", "width": 60, "height": 40},
        {"id": 12, "file_name": "0.png", "width": 61, "height": 40},
    ]
    dataset["categories"].append({"id": 2, "name": "wolf"})


def test_fixed_copy_checks_clean(dataset: Dataset, images: Path, tmp_path: Path) -> None:
    break_everything(dataset, images)
    before = copy.deepcopy(dataset)
    checked = check_dataset(dataset, images)
    mendable = {f.kind.key for f in checked.report.problems if f.kind.fix}
    assert len(mendable) == len(checked.report.problems) == 15
    done = checked.write_fixed(tmp_path / "fixed.json")
    assert repr(dataset) == repr(before)
    fixed = check_dataset(tmp_path / "fixed.json", images)
    assert fixed.report.problems == []
    assert [a["bbox"] for a in fixed.dataset["annotations"]] == [
        *(a["bbox"] for a in before["annotations"][:4]),
        [50.0, 30.0, 10.0, 10.0],
        [52.0, 30.0, 8.0, 10.0],
        [3, 3, 9, 9],
        [3, 3, 5, 5],
        [3, 3, 7, 5],
    ]
    assert [a["id"] for a in fixed.dataset["annotations"]] == [1, 2, 3, 4, 53, 54, 83, 84, 85]
    assert fixed.dataset["annotations"][4]["area"] == 100.0
    assert [i["id"] for i in fixed.dataset["images"]] == [0, 1, 2]
    assert fixed.dataset["images"][1]["height"] == 40
    assert "3 boxes dropped with their images" in done
    assert "2 boxes clipped to their images" in done
    assert "3 annotations renumbered" in done
    assert "1 images dropped: wrong size" in done
    assert "1 image sizes written" in done


def test_boxes_that_clip_to_the_same_are_duplicates(dataset: Dataset, tmp_path: Path) -> None:
    for identity, width in ((60, 200), (61, 300)):
        dataset["annotations"].append(
            {"id": identity, "image_id": 1, "category_id": 1, "bbox": [20, 20, width, 10]}
        )
    checked = check_dataset(dataset, None)
    checked.write_fixed(tmp_path / "fixed.json")
    assert problems(tmp_path / "fixed.json") == {}


def test_the_input_is_never_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(dataset))
    (tmp_path / "link.json").symlink_to(path)
    checked = check_dataset(path, None)
    for target in (path, tmp_path / "link.json", tmp_path / "x" / ".." / "train.json"):
        with pytest.raises(ValueError, match="is the checked file"):
            checked.write_fixed(target, source=path)
    assert json.loads(path.read_text()) == dataset


def test_report_prints_and_saves(dataset: Dataset, tmp_path: Path) -> None:
    dataset["annotations"][1]["bbox"] = [NAN, 0, 5, 5]
    dataset["images"][1]["file_name"] = "[bold]odd[/].png"
    report = check_dataset(dataset, None).report
    console = Console(record=True, width=100, file=(tmp_path / "screen").open("w"))
    report.print(console)
    text = console.export_text()
    for piece in ("1 problems of 1 kinds", "NaN or infinite box", "annotation 2", "[bold]odd[/]"):
        assert piece in text
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["clean"] is False
    assert saved["problems"][0]["key"] == "NaN or infinite box"
    assert saved["problems"][0]["count"] == 1


def test_records_of_a_registered_dataset(dataset: Dataset, images: Path) -> None:
    records = [
        {
            "file_name": str(images / image["file_name"]),
            "image_id": image["id"],
            "width": 60,
            "height": 40,
            "annotations": [
                {"bbox": [0.0, 0.0, 70.0, 10.0], "bbox_mode": mode, "category_id": 1}
                for mode in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            ],
        }
        for image in dataset["images"]
    ]
    name = "check_test_records"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = ["cat", "dog"]
    try:
        converted, image_root = from_registered(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert problems(converted, Path(image_root)) == {"box beyond the border": 6, "duplicate box": 3}
    assert converted["annotations"][0]["bbox"] == [0.0, 0.0, 70.0, 10.0]
    with pytest.raises(ValueError, match="no dataset 'nothing_here' is registered"):
        from_registered("nothing_here")
    records[0]["annotations"][0] |= {"bbox": [1.0, 2.0, 3.0], "bbox_mode": BoxMode.XYXY_ABS}
    assert "malformed box" in problems(load_dataset(records), images)
    records[0]["annotations"][0]["bbox_mode"] = BoxMode.XYWHA_ABS
    with pytest.raises(ValueError, match=r"XYWHA_ABS.* cannot be checked"):
        load_dataset(records)


def test_many_boxes_are_fast() -> None:
    rng = np.random.default_rng(0)
    count, num_images = 200_000, 20_000
    boxes = rng.uniform(1, 300, (count, 4)).round(2).tolist()
    places = rng.integers(0, num_images, count).tolist()
    dataset = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 640}
            for i in range(num_images)
        ],
        "annotations": [
            {"id": i + 1, "image_id": place, "category_id": 1 + i % 1000, "bbox": box, "iscrowd": 0}
            for i, (place, box) in enumerate(zip(places, boxes, strict=True))
        ],
        "categories": [{"id": i, "name": f"c{i}"} for i in range(1, 1001)],
    }
    start = time.process_time()
    report = check_dataset(dataset, None).report
    # Takes about 0.6 s; a loop over pairs or boxes would take minutes.
    assert time.process_time() - start < 10
    assert report.num_annotations == count
