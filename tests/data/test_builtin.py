# SPDX-License-Identifier: Apache-2.0
"""The datasets that are registered on import, on small stand-ins for their files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT

from vastdet.data import builtin, category_space

EXPECTED = {
    "coco_2017_train": "coco",
    "coco_2017_val": "coco",
    "lvis_v1_train": "lvis",
    "lvis_v1_val": "lvis",
    "lvis_v1_minival": "lvis",
    "v3det_train": "v3det",
    "v3det_val": "v3det",
    "v3det_ovd_base_train": "v3det",
    "objects365_v2_train": "coco",
    "objects365_v2_val": "coco",
    "voc_2007_test": "pascal_voc",
    "voc_2012_trainval": "pascal_voc",
    "voc_2007_test_coco": "coco",
    "bccd_train": "coco",
    "bccd_val": "coco",
}


# Run in a fresh process, whose datasets lie below a folder made by the test.
REPORT = """
import json
from detectron2.data import DatasetCatalog, MetadataCatalog
import vastdet
from vastdet.data import category_space

v3det, v3det_records = category_space("v3det_val"), DatasetCatalog.get("v3det_val")
lvis, voc = DatasetCatalog.get("lvis_v0.5_val"), DatasetCatalog.get("voc_2007_test")
print(json.dumps({
    "v3det": [len(v3det), len(v3det.hierarchy), sum(v3det.novel), len(v3det_records)],
    "v3det_file": v3det_records[0]["file_name"],
    "lvis": [len(lvis), sum(len(r["annotations"]) for r in lvis)],
    "lvis_keys": [*lvis[0], *lvis[0]["annotations"][0]],
    "voc": [voc[0]["width"], voc[0]["height"], voc[0]["annotations"][0]["bbox"]],
    "voc_class": category_space("voc_2007_test").names[voc[0]["annotations"][0]["category_id"]],
}))
"""


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(("name", "evaluator_type"), EXPECTED.items())
def test_registered_with_its_evaluator(name: str, evaluator_type: str) -> None:
    assert name in DatasetCatalog
    assert MetadataCatalog.get(name).evaluator_type == evaluator_type
    assert MetadataCatalog.get(name).image_root


@pytest.mark.parametrize("name", EXPECTED)
def test_a_missing_dataset_says_where_it_belongs(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if Path(builtin.dataset_root()).is_dir():
        pytest.skip("this machine has datasets")
    with pytest.raises(FileNotFoundError, match=r"DETECTRON2_DATASETS.*datasets/README\.md") as e:
        DatasetCatalog.get(name)
    assert f"'{name}'" in str(e.value)


@pytest.mark.parametrize(
    ("name", "count", "last_id"),
    [("coco_2017_val", 80, 90), ("lvis_v1_minival", 1203, 1203), ("voc_2007_test", 20, 20)],
)
def test_vocabularies_known_without_files(name: str, count: int, last_id: int) -> None:
    space = category_space(name)
    metadata = MetadataCatalog.get(name)
    assert len(space) == count
    assert space.dataset_ids[-1] == last_id
    assert list(space.names) == list(metadata.thing_classes)
    assert metadata.thing_dataset_id_to_contiguous_id == space.dataset_id_to_contiguous_id


def test_lvis_space_is_that_of_the_file(shared_data: Path) -> None:
    stated = json.loads((shared_data / "lvis_meta/lvis_v1_categories.json").read_text())
    space = category_space("lvis_v1_val")
    assert space.frequency == tuple(c["frequency"] for c in stated)
    assert space.image_counts == tuple(c["image_count"] for c in stated)
    # Which Detectron2's federated loss reads.
    assert MetadataCatalog.get("lvis_v1_train").class_image_count == LVIS_CATEGORY_IMAGE_COUNT
    assert len(category_space("lvis_v0.5_val")) == 1230


@pytest.fixture(scope="module")
def root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets: V3Det, LVIS and VOC in miniature, and a file that is no JSON."""
    root = tmp_path_factory.mktemp("datasets")
    mini = shared_data / "eval_fixtures/v3det_mini"
    document = json.loads((mini / "gt.json").read_text())
    for image in document["images"]:
        image["file_name"] = f"images/a1/{image['file_name']}"
    write(root / "v3det/annotations/v3det_2023_v1_val.json", document)
    write(root / builtin.V3DET_TREE, (mini / "category_tree.json").read_text())
    lvis = shared_data / "lvis_mini/annotations/lvis_v0.5_val_cc.json"
    write(root / "lvis/lvis_v0.5_val.json", lvis.read_text())
    (root / "coco").mkdir()
    write(root / "VOC2007/ImageSets/Main/test.txt", "000001\n000002\n")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>3</ymax></bndbox>"
    xml = (
        "<annotation><size><width>4</width><height>3</height></size>"
        f"<object><name>dog</name>{box}</object></annotation>"
    )
    for name in ("000001", "000002"):
        write(root / f"VOC2007/Annotations/{name}.xml", xml)
    write(root / "bccd/annotations/val.json", "importing must not read this")
    return root


def test_datasets_below_the_variables_folder(root: Path) -> None:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    command = [sys.executable, "-W", "ignore", "-c", REPORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    document = json.loads((root / "v3det/annotations/v3det_2023_v1_val.json").read_text())
    num_novel = sum(category["novel"] for category in document["categories"])
    assert report["v3det"] == [183, 183, num_novel, 168]
    assert report["v3det_file"] == str(root / "v3det/images/a1/000000000030.jpg")
    # Without the lvis package, which Detectron2's own loader needs.
    assert report["lvis"] == [15, 142]
    assert {"neg_category_ids", "not_exhaustive_category_ids", "segmentation"} <= set(
        report["lvis_keys"]
    )
    assert report["voc"] == [4, 3, [0.0, 0.0, 4.0, 3.0]]
    assert report["voc_class"] == "dog"


def test_v3det_without_its_tree_says_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    annotations = str(root / "v3det/annotations/v3det_2023_v1_val.json")
    space = builtin.v3det_space("v3det_val", annotations, str(root / "no_tree.json"))
    assert len(space) == 183
    assert space.hierarchy is None
    assert "no category tree" in caplog.text
