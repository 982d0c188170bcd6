# SPDX-License-Identifier: Apache-2.0
"""Derived annotation files: minival, V3Det's base split, Objects365 on disk."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vastdet.data import derive


def document(**image_fields: list) -> dict:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 4, "height": 4} for i in (1, 2, 3)]
    for key, values in image_fields.items():
        for image, value in zip(images, values, strict=True):
            image[key] = value
    return {
        "info": {"year": 1},
        "images": images,
        "annotations": [
            {"id": k, "image_id": image, "category_id": category, "bbox": [0, 0, 1, 1]}
            for k, (image, category) in enumerate([(1, 1), (1, 2), (2, 2), (3, 1)])
        ],
        "categories": [
            {"id": 1, "name": "a", "novel": False, "frequency": "r"},
            {"id": 2, "name": "b", "novel": True, "frequency": "f"},
        ],
    }


def test_minival_keeps_val2017() -> None:
    urls = [f"http://x/{folder}/1.jpg" for folder in ("val2017", "train2017", "val2017")]
    full = document(coco_url=urls)
    before = copy.deepcopy(full)
    minival = derive.lvis_minival(full)
    assert [image["id"] for image in minival["images"]] == [1, 3]
    assert [a["image_id"] for a in minival["annotations"]] == [1, 1, 3]
    assert minival["categories"] == full["categories"]
    assert minival["info"] == full["info"]
    assert full == before


def test_minival_of_other_files_is_an_error() -> None:
    with pytest.raises(ValueError, match="image 1 has no coco_url"):
        derive.lvis_minival(document())
    with pytest.raises(ValueError, match="no image is of COCO's val2017"):
        derive.lvis_minival(document(coco_url=["http://x/train2017/1.jpg"] * 3))


def test_minival_of_real_annotations(shared_data: Path) -> None:
    path = shared_data / "lvis_mini/annotations/lvis_v0.5_val.json"
    full = json.loads(path.read_text())
    expected = {i["id"] for i in full["images"] if "/val2017/" in i["coco_url"]}
    assert {i["id"] for i in derive.lvis_minival(full)["images"]} == expected


def test_base_boxes_only() -> None:
    base = derive.v3det_ovd_base(document())
    assert [a["category_id"] for a in base["annotations"]] == [1, 1]
    assert [image["id"] for image in base["images"]] == [1, 3]
    assert len(base["categories"]) == 2


def test_base_split_needs_the_flags() -> None:
    full = document()
    full["categories"][1]["novel"] = False
    with pytest.raises(ValueError, match="no 'novel' flag"):
        derive.v3det_ovd_base(full)
    del full["categories"][0]["novel"]
    with pytest.raises(ValueError, match="no 'novel' flag"):
        derive.v3det_ovd_base(full)


def test_objects365_names_and_missing_images(tmp_path: Path) -> None:
    full = document(
        file_name=[f"images/v{v}/patch{p}/o_{p}.jpg" for v, p in [(1, 0), (2, 9), (1, 7)]]
    )
    for name in ("patch0/o_0.jpg", "patch9/o_9.jpg"):
        path = tmp_path / "val" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" if name.startswith("patch9") else b"")
    kept, left_out = derive.objects365_present(
        full, tmp_path, split="val", is_usable=derive.is_present
    )
    assert [image["file_name"] for image in kept["images"]] == ["val/patch9/o_9.jpg"]
    assert [a["image_id"] for a in kept["annotations"]] == [2]
    assert left_out == ["val/patch0/o_0.jpg", "val/patch7/o_7.jpg"]
    with pytest.raises(ValueError, match="none of 3 images is usable"):
        derive.objects365_present(full, tmp_path, split="x", is_usable=derive.is_present)


def test_readable_images(tmp_path: Path) -> None:
    good, cut, text = (tmp_path / name for name in ("good.jpg", "cut.jpg", "text.jpg"))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(good)
    cut.write_bytes(good.read_bytes()[:-500])
    text.write_text("no image")
    assert derive.is_readable(good)
    assert not any(map(derive.is_readable, (cut, text, tmp_path / "missing.jpg")))
