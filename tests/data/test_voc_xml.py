# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC's XML in COCO's format, against Detectron2's reading of the same files."""

from pathlib import Path

import pytest
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances
from pycocotools.coco import COCO

from vastdet.data.voc_xml import voc_to_coco


def voc_object(name: str, box: tuple[int, ...], difficult: str = "") -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
    return f"<object><name>{name}</name>{difficult}<bndbox>{inner}</bndbox></object>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    objects = {
        "2007_01": voc_object("dog", (1, 1, 40, 30)) + voc_object("person", (5, 6, 7, 8)),
        "2007_02": voc_object("cat", (2, 2, 2, 2), "<difficult>1</difficult>"),
        "2007_03": "",
    }
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n".join(objects) + "\n")
    size = "<size><width>40</width><height>30</height></size>"
    for name, inner in objects.items():
        text = f"<annotation>{size}{inner}</annotation>"
        (tmp_path / f"Annotations/{name}.xml").write_text(text)
    return tmp_path


def test_boxes_are_those_of_detectron2(folder: Path) -> None:
    document = voc_to_coco(folder, "train")
    expected = load_voc_instances(str(folder), "train", CLASS_NAMES)
    assert [i["voc_id"] for i in document["images"]] == [r["image_id"] for r in expected]
    for image, record in zip(document["images"], expected, strict=True):
        assert (image["width"], image["height"]) == (record["width"], record["height"])
        found = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        for a, b in zip(found, record["annotations"], strict=True):
            x, y, w, h = a["bbox"]
            assert [x, y, x + w, y + h] == b["bbox"]
            assert a["category_id"] == b["category_id"] + 1
            assert a["area"] == w * h
    assert document["annotations"][0]["bbox"] == [0, 0, 40, 30]


def test_difficult_becomes_crowd(folder: Path) -> None:
    document = voc_to_coco(folder, "train")
    assert [(a["iscrowd"], a["difficult"]) for a in document["annotations"]] == [
        (0, 0),
        (0, 0),
        (1, 1),
    ]


def test_pycocotools_reads_it(folder: Path) -> None:
    coco = COCO()
    coco.dataset = voc_to_coco(folder, "train")
    coco.createIndex()
    assert len(coco.getImgIds()) == 3
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASS_NAMES)


def test_missing_and_damaged_files_are_errors(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"test\.txt does not exist"):
        voc_to_coco(folder, "test")
    path = folder / "Annotations/2007_02.xml"
    size = "<size><width>40</width><height>30</height></size>"
    for text, message in [
        ("<annotation>", "no usable VOC annotation"),
        ("<annotation/>", "<annotation> has no <size/width>"),
        (f"<annotation>{size}{voc_object('yak', (1, 1, 2, 2))}</annotation>", "class 'yak'"),
        (f"<annotation>{size}<object><name>cat</name></object></annotation>", "no <bndbox/xmin>"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            voc_to_coco(folder, "train")
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="2007_02"):
        voc_to_coco(folder, "train")
