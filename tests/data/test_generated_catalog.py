# SPDX-License-Identifier: Apache-2.0
"""Registered generated datasets: records, paths, metadata, determinism across processes."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager

from vastdet.data.generated import GeneratedSplit, SceneConfig

HASH = """
import hashlib, sys
from detectron2.utils.file_io import PathManager
import vastdet
digest = hashlib.sha256()
for path in sys.argv[1:]:
    with PathManager.open(path, "rb") as file:
        digest.update(file.read())
print(digest.hexdigest())
"""


def test_same_pixels_in_another_process() -> None:
    paths = [GeneratedSplit.default(k, "val").file_name(i) for k in (24, 20_000) for i in (5, 3)]
    digest = hashlib.sha256()
    for path in reversed(paths):  # another order of rendering must not matter
        PathManager.open(path, "rb").read()
    for path in paths:
        with PathManager.open(path, "rb") as file:
            digest.update(file.read())
    command = [sys.executable, "-W", "ignore", "-c", HASH, *paths]
    other = subprocess.run(command, check=True, capture_output=True, text=True)
    assert other.stdout.split()[-1] == digest.hexdigest()


@pytest.mark.parametrize("name", ["generated_24_val", "generated_10_open_train"])
def test_registered_set_is_read_by_detectron2(name: str) -> None:
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    assert len(records) > 0
    record = records[7]
    image = read_image(record["file_name"], "BGR")
    assert image.shape == (record["height"], record["width"], 3)
    scene = GeneratedSplit.default(*_key(name)).render(7)
    np.testing.assert_array_equal(image[:, :, ::-1], scene.image)
    classes = {a["category_id"] for r in records for a in r["annotations"]}
    assert classes <= set(range(len(metadata.thing_classes)))
    assert metadata.evaluator_type == "coco"


def _key(name: str) -> tuple[int, str]:
    _, count, split = name.split("_", 2)
    return int(count), split


def test_custom_set_is_found_by_its_path_alone() -> None:
    split = GeneratedSplit(24, "val", SceneConfig(width=96, noise=0.0), 3, seed=9)
    image = read_image(split.file_name(2), "RGB")
    np.testing.assert_array_equal(image, split.render(2).image)
    with pytest.raises(FileNotFoundError, match="expected 0 to 2"):
        PathManager.open(split.folder + "/000003.ppm", "rb")
