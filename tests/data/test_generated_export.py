# SPDX-License-Identifier: Apache-2.0
"""Written sets: COCO, LVIS and V3Det files, images, texts."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO

from vastdet.data.generated import GeneratedSplit, SceneConfig
from vastdet.data.generated.export import federated_labels
from vastdet.data.generated.writer import write_dataset
from vastdet.vocabulary import CategorySpace

SPLIT = GeneratedSplit(24, "open_val", SceneConfig(max_objects=10, repeat=0.5), 40)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    write_dataset(SPLIT, folder, progress=lambda numbers: numbers)
    return folder


def _read(folder: Path, name: str) -> dict:
    return json.loads((folder / "annotations" / name).read_text("utf-8"))


def test_images_hold_the_exact_pixels(written: Path) -> None:
    assert len(list((written / "images").iterdir())) == 40
    image = cv2.imread(str(written / "images" / "000007.png"))
    np.testing.assert_array_equal(image[:, :, ::-1], SPLIT.render(7).image)


def test_coco_file_loads_with_masks(written: Path) -> None:
    path = written / "annotations" / "coco.json"
    coco = COCO(str(path))
    assert len(coco.getImgIds()) == 40
    assert len(coco.getCatIds()) == 24
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"]
        assert mask_util.toBbox(coco.annToRLE(annotation)).tolist() == annotation["bbox"]
    assert len(load_coco_json(str(path), str(written / "images"))) == 40


def test_lvis_file_is_federated(written: Path) -> None:
    path = written / "annotations" / "lvis.json"
    lvis, full = _read(written, "lvis.json"), _read(written, "coco.json")
    space = CategorySpace.from_lvis(str(path))
    assert all(group in "rcf" for group in space.frequency)
    in_image = {i["id"]: {c["id"]: 0 for c in lvis["categories"]} for i in lvis["images"]}
    true = {i: dict(counts) for i, counts in in_image.items()}
    for annotation in lvis["annotations"]:
        in_image[annotation["image_id"]][annotation["category_id"]] += 1
    for annotation in full["annotations"]:
        true[annotation["image_id"]][annotation["category_id"]] += 1
    unverified = incomplete = 0
    for image in lvis["images"]:
        negative = image["neg_category_ids"]
        partial = image["not_exhaustive_category_ids"]
        for category in true[image["id"]]:
            labelled, present = in_image[image["id"]][category], true[image["id"]][category]
            if category in negative:
                assert present == 0
            if category in partial:
                assert 0 < labelled < present
                incomplete += 1
            elif labelled:
                assert labelled == present
            else:
                unverified += present > 0
    assert unverified > 0
    assert incomplete > 0
    counts = {c["id"]: c for c in lvis["categories"]}
    for category in counts:
        assert counts[category]["image_count"] == sum(i[category] > 0 for i in in_image.values())
        assert counts[category]["instance_count"] == sum(i[category] for i in in_image.values())
    assert all((written / image["coco_url"]).is_file() for image in lvis["images"])


def test_lvis_polygons_cover_the_masks(written: Path) -> None:
    for annotation in _read(written, "lvis.json")["annotations"][:100]:
        runs = mask_util.frPyObjects(annotation["segmentation"], 160, 160)
        x, y, width, height = mask_util.toBbox(mask_util.merge(runs)).tolist()
        np.testing.assert_allclose([x, y, width, height], annotation["bbox"], atol=1.01)


def test_v3det_files_agree(written: Path) -> None:
    folder = written / "annotations"
    space = CategorySpace.from_v3det(
        str(folder / "v3det.json"),
        name_list=str(folder / "v3det_category_names.txt"),
        category_tree=str(folder / "v3det_category_tree.json"),
    )
    assert space.names == SPLIT.categories.names
    assert space.novel == SPLIT.categories.novel
    assert space.hierarchy is not None
    assert space.hierarchy.num_levels == 4
    v3det = _read(written, "v3det.json")
    assert all((written / image["file_name"]).is_file() for image in v3det["images"])
    assert all(category["cat_info"] for category in v3det["categories"])


def test_texts_point_at_annotated_boxes(written: Path) -> None:
    boxes = {
        (a["image_id"], a["category_id"], *a["bbox"])
        for a in _read(written, "coco.json")["annotations"]
    }
    lines = (written / "annotations" / "captions.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == 40
    for entry in entries:
        for region in entry["regions"]:
            ((start, stop),) = region["tokens_positive"]
            assert entry["caption"][start:stop] == region["phrase"]
            for box in region["boxes"]:
                assert (entry["image_id"], region["category_id"], *box) in boxes
    lines = (written / "annotations" / "referring.jsonl").read_text("utf-8").splitlines()
    for entry in map(json.loads, lines):
        assert (entry["image_id"], entry["category_id"], *entry["box"]) in boxes


def test_one_of_twins_may_stay_unlabelled() -> None:
    objects = SPLIT.layout(0).objects[:1] * 3
    rng = np.random.default_rng(0)
    kept = [federated_labels(SPLIT.categories, objects, rng) for _ in range(200)]
    category = objects[0].category
    for labelled, absent, not_exhaustive in kept:
        assert category not in absent
        assert not_exhaustive == ([category] if 0 < len(labelled) < 3 else [])
    assert {len(labelled) for labelled, _, _ in kept} == {0, 1, 2, 3}


@pytest.mark.parametrize("change", [{"formats": ("voc",)}, {"formats": ()}, {"image_type": "gif"}])
def test_unknown_format_is_refused(tmp_path: Path, change: dict) -> None:
    with pytest.raises(ValueError, match="expected some of coco, lvis, v3det"):
        write_dataset(SPLIT, tmp_path, **change)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shapes").touch()
    with pytest.raises(ValueError, match="shapes, which is a file; expected a folder"):
        write_dataset(SPLIT, tmp_path / "shapes")


def test_jpeg_and_overwriting(tmp_path: Path) -> None:
    split = dataclasses.replace(SPLIT, num_images=2)
    write_dataset(split, tmp_path, formats=("coco",), image_type="jpg")
    with pytest.raises(ValueError, match=r"not empty.*--overwrite"):
        write_dataset(split, tmp_path, formats=("coco",))
    write_dataset(split, tmp_path, formats=("coco",), image_type="jpg", overwrite=True)
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["000000.jpg", "000001.jpg", "captions.jsonl", "coco.json", "referring.jsonl"]


def test_lvis_groups_of_a_training_file_follow_its_counts(tmp_path: Path) -> None:
    write_dataset(GeneratedSplit(10, "train", SceneConfig(), 60), tmp_path, formats=("lvis",))
    categories = _read(tmp_path, "lvis.json")["categories"]
    groups = {c["frequency"] for c in categories}
    assert groups == {"r", "c"}
    assert all((c["frequency"] == "r") == (c["image_count"] <= 10) for c in categories)
