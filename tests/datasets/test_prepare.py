# SPDX-License-Identifier: Apache-2.0
"""The command lines datasets/prepare_*.py on small files."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Main = Callable[[list[str]], None]
SCRIPTS = ("lvis_minival", "objects365", "v3det_ovd", "voc")

CATEGORIES = [{"id": 1, "name": "a", "novel": False}, {"id": 2, "name": "b", "novel": True}]
IMAGES = [
    {"id": k, "file_name": f"images/v1/patch0/{k}.jpg", "width": 4, "height": 4,
     "coco_url": f"http://x/{folder}/{k}.jpg"}
    for k, folder in ((1, "val2017"), (2, "train2017"))
]  # fmt: skip
ANNOTATIONS = [{"id": k, "image_id": k, "category_id": k, "bbox": [0, 0, 1, 1]} for k in (1, 2)]
DOCUMENT = {"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}


def load(repository: Path, script: str) -> Main:
    return runpy.run_path(str(repository / f"datasets/prepare_{script}.py"))["main"]


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(repository, script)(["--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_input_is_one_line_and_exit_code_2(
    script: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = "--root" if script in ("objects365", "voc") else "--input"
    with pytest.raises(SystemExit) as stop:
        load(repository, script)([option, str(tmp_path / "nowhere")])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in error
    assert "nowhere" in error
    assert "does not exist" in error


@pytest.mark.parametrize("script", ["lvis_minival", "v3det_ovd"])
def test_one_file_to_another(
    script: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.json", DOCUMENT)
    target = tmp_path / "out" / "out.json"
    load(repository, script)(["--input", str(source), "--output", str(target)])
    document = json.loads(target.read_text())
    assert [image["id"] for image in document["images"]] == [1]
    assert document["annotations"] == ANNOTATIONS[:1]
    assert document["categories"] == CATEGORIES
    assert "kept 1 " in capsys.readouterr().out
    assert len(list(target.parent.iterdir())) == 1


def test_objects365(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "annotations/zhiyuan_objv2_val.json", DOCUMENT)
    write(tmp_path / "val/patch0/2.jpg", "not empty")
    main = load(repository, "objects365")
    main(["--root", str(tmp_path), "--splits", "val"])
    document = json.loads((tmp_path / "annotations/objects365_v2_val.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["val/patch0/2.jpg"]
    assert "kept 1 images, left out 1" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--root", str(tmp_path), "--splits", "val", "--decode"])
    assert stop.value.code == 2
    assert "none of 2 images is usable" in capsys.readouterr().err


def test_voc(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text("x\n")
    (tmp_path / "Annotations").mkdir()
    size = "<size><width>4</width><height>3</height></size>"
    (tmp_path / "Annotations/x.xml").write_text(f"<annotation>{size}</annotation>")
    load(repository, "voc")(["--root", str(tmp_path), "--splits", "val"])
    document = json.loads((tmp_path / "val_coco.json").read_text())
    assert document["images"][0]["file_name"] == "x.jpg"
    assert len(document["categories"]) == 20


def test_categories_of_another_vocabulary(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {
        **DOCUMENT,
        "images": [{**IMAGES[0], "neg_category_ids": [2]}, IMAGES[1]],
    }
    source = write(tmp_path / "old.json", document)
    mapping = write(tmp_path / "map.json", {"1": {"new": 31}, "2": {"new": None}})
    others = [{"id": k, "name": f"n{k}"} for k in (30, 31)]
    categories = write(tmp_path / "new.json", others)
    output = tmp_path / "out.json"
    options = ["--input", source, "--mapping", mapping, "--categories", categories]
    options = [*map(str, options), "--output", str(output)]
    load(repository, "recategorized")([*options, "--key", "new"])
    result = json.loads(output.read_text())
    assert result["categories"] == others
    assert [a["category_id"] for a in result["annotations"]] == [31]
    assert result["images"] == IMAGES
    printed = capsys.readouterr().out
    assert "kept 1 of 2 boxes, of 1 of the 2 categories" in printed
    assert "without a new category: b" in printed
    for wrong, message in (
        ({"1": {"other": 1}}, "name one by --key"),
        ({"1": "a"}, "expected an id or null"),
        ({"1": 77}, "such as 77, are not among the 2 new categories"),
        ({"1": None}, "no box has a category that the other vocabulary has"),
    ):
        write(mapping, wrong)
        with pytest.raises(SystemExit):
            load(repository, "recategorized")(options)
        assert message in capsys.readouterr().err


def test_categories_of_another_release_are_found_by_a_field(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture
) -> None:
    old = [{"id": 7, "name": "a", "synset": "a.n.01"}, {"id": 8, "name": "b", "synset": "b.n.01"}]
    boxes = [{"id": k, "image_id": 1, "category_id": k, "bbox": [0, 0, 5, 5]} for k in (7, 8)]
    document = {"images": IMAGES, "annotations": boxes, "categories": old}
    source = write(tmp_path / "in.json", document)
    others = write(tmp_path / "others.json", [{"id": 30, "name": "x"}, {"id": 31, "name": "y"}])
    # Its ids say the opposite.
    entries = {"8": {"synset": "a.n.01", "new": 31}, "7": {"synset": "c.n.01", "new": 30}}
    mapping, output = write(tmp_path / "map.json", entries), tmp_path / "out.json"
    options = ["--input", source, "--mapping", mapping, "--categories", others, "--output", output]
    options = [*map(str, options), "--key", "new", "--by", "synset"]
    load(repository, "recategorized")(options)
    result = json.loads(output.read_text())
    assert [a["category_id"] for a in result["annotations"]] == [31]
    assert "without a new category: b" in capsys.readouterr().out
    for wrong, message in (
        ({"1": 30}, "the mapping has the entry 30 without it"),
        ({"1": {"new": 30}}, "the mapping has the entry {'new': 30} without it"),
        ({**entries, "9": {"synset": "a.n.01", "new": 30}}, "'a.n.01' is mapped to 31 and to 30"),
    ):
        write(mapping, wrong)
        with pytest.raises(SystemExit):
            load(repository, "recategorized")(options)
        assert message in capsys.readouterr().err
    write(mapping, entries)
    write(source, {**document, "categories": [{"id": 7, "name": "a"}, old[1]]})
    with pytest.raises(SystemExit):
        load(repository, "recategorized")(options)
    assert "category 'a' of the input has no such field" in capsys.readouterr().err
