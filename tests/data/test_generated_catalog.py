# SPDX-License-Identifier: Apache-2.0
"""Registered generated datasets: records, paths, metadata, determinism across processes."""

import contextlib
import copy
import hashlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager

from vastdet.data import category_space
from vastdet.data.generated import GeneratedSplit, SceneConfig, register_generated
from vastdet.vocabulary import CategorySpace


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


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("generated://24/val", "expected generated://"),
        ("generated://x/val/000001.ppm", "expected generated://"),
        ("generated://24/val/1.ppm", "expected generated://"),
        ("generated://24/test/000001.ppm", "expected one of train, val"),
        ("generated://7/val/000001.ppm", "expected 10 to 20,000"),
        ("generated://24/val/size=3/000001.ppm", "expected field=value"),
        ("generated://24/val/noise=200/000001.ppm", "SceneConfig.noise"),
        ("generated://24/val/num_images=0/000000.ppm", "at least 1 image"),
        ("generated://24/val/seed=-1/000000.ppm", "seed of at least 0"),
    ],
)
def test_wrong_path_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathManager.open(path, "rb")
    assert not PathManager.exists(path)


def test_generated_paths_are_read_only() -> None:
    path = GeneratedSplit.default(24, "val").file_name(0)
    with pytest.raises(ValueError, match="read-only"):
        PathManager.open(path, "wb")
    assert PathManager.isfile(path)


def test_annotations_are_a_coco_file_behind_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    metadata = MetadataCatalog.get("generated_24_val")
    with PathManager.open(metadata.json_file, "r") as file:
        content = json.load(file)
    local = Path(PathManager.get_local_path(metadata.json_file))
    assert tmp_path in local.parents
    assert json.loads(local.read_text("utf-8")) == content
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = load_coco_json(metadata.json_file, metadata.image_root)
    for ours, theirs in zip(DatasetCatalog.get("generated_24_val"), loaded, strict=True):
        assert ours["file_name"] == theirs["file_name"]
        boxes = [(a["bbox"], a["category_id"]) for a in ours["annotations"]]
        # Without a mapping Detectron2 keeps the file's ids, which start at 1.
        assert boxes == [(a["bbox"], a["category_id"] - 1) for a in theirs["annotations"]]


def test_metadata_makes_a_category_space() -> None:
    metadata = MetadataCatalog.get("generated_50_open_val")
    split = GeneratedSplit.default(50, "open_val")
    space = CategorySpace.from_metadata(metadata)
    assert space is category_space("generated_50_open_val")
    assert list(space.names) == metadata.thing_classes == list(split.categories.names)
    assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(50)}
    assert all(space.synonyms)
    assert space.hierarchy is not None
    assert space.frequency == split.frequency_groups()
    assert space.novel == tuple(split.categories.novel)
    assert [group is None for group in space.frequency] == list(space.novel)
    assert not any(category_space("generated_50_val").novel or ())
    with pytest.raises(AttributeError):
        _ = MetadataCatalog.get("generated_50_val").no_such_key


def test_metadata_can_be_copied_and_sent() -> None:
    metadata = MetadataCatalog.get("generated_100_val")
    for other in (pickle.loads(pickle.dumps(metadata)), copy.deepcopy(metadata)):
        assert other.as_dict() == metadata.as_dict()
        assert len(other.thing_classes) == 100
        assert other.name == "generated_100_val"


def test_a_set_can_be_registered_under_a_name() -> None:
    split = GeneratedSplit(10, "train", SceneConfig(height=64, width=64), 4)
    register_generated("generated_test_set", split)
    try:
        records = DatasetCatalog.get("generated_test_set")
        assert [r["image_id"] for r in records] == [1, 2, 3, 4]
        assert read_image(records[3]["file_name"], "BGR").shape == (64, 64, 3)
        assert len(MetadataCatalog.get("generated_test_set").thing_classes) == 10
    finally:
        DatasetCatalog.remove("generated_test_set")
        MetadataCatalog.remove("generated_test_set")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_same_pixels_in_worker_processes(method: str) -> None:
    splits = [GeneratedSplit.default(size, "val") for size in (24, 20_000)]
    paths = [split.file_name(index) for split in splits for index in (5, 3)]
    loader = torch.utils.data.DataLoader(
        paths, batch_size=2, num_workers=1, multiprocessing_context=method, collate_fn=_digests
    )
    expected = [_digests([path])[0] for path in reversed(paths)]  # in another order
    assert [digest for batch in loader for digest in batch] == expected[::-1]
    assert len(set(expected)) == 4


def _digests(paths: list[str]) -> list[str]:
    # A spawned worker is a new process, with another hash seed and empty caches.
    import vastdet  # noqa: F401  (registers the handler)

    return [hashlib.sha256(PathManager.open(path, "rb").read()).hexdigest() for path in paths]
