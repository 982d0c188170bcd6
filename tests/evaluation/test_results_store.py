# SPDX-License-Identifier: Apache-2.0
"""The .npz results file: exact, plain arrays, refused when it is another dataset's."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from vastdet.evaluation import results_store
from vastdet.evaluation.detections import NO_DETECTIONS, Detections
from vastdet.evaluation.ground_truth import GroundTruth, from_coco
from vastdet.evaluation.results_file import from_results, read_results
from vastdet.evaluation.results_store import fingerprint, is_store, read_store, write_store


def dataset(image_ids=(7, 3, 5), category_ids=(10, 20)) -> GroundTruth:
    return from_coco(
        {
            "images": [{"id": i, "height": 10, "width": 12} for i in image_ids],
            "categories": [{"id": k, "name": f"c{k}"} for k in category_ids],
            "annotations": [],
        },
        source="truth.json",
    )


def detections(dtype: type = np.float32, count: int = 40) -> Detections:
    generator = np.random.default_rng(0)
    return Detections(
        image_index=generator.integers(0, 3, count),
        category_index=generator.integers(0, 2, count),
        boxes=generator.uniform(0, 9, (count, 4)).astype(dtype).astype(np.float64),
        scores=generator.random(count).astype(dtype).astype(np.float64),
    )


def assert_equal(one: Detections, other: Detections) -> None:
    for column in ("image_index", "category_index", "boxes", "scores"):
        ours, theirs = getattr(one, column), getattr(other, column)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("dtype", "stored"), [(np.float32, "float32"), (np.float64, "float64")])
def test_round_trip_is_exact(tmp_path: Path, dtype: type, stored: str) -> None:
    truth, found = dataset(), detections(dtype)
    write_store(tmp_path / "r.npz", found, truth, dataset="birds")
    assert is_store(tmp_path / "r.npz")
    assert_equal(read_results(tmp_path / "r.npz", truth), found)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as archive:
        assert archive["boxes"].dtype == stored
        assert archive["scores"].dtype == stored
        assert archive["image_id"].dtype == np.int32
        # Ids are the dataset's: images are numbered by their sorted ids.
        np.testing.assert_array_equal(archive["image_id"], np.array([3, 5, 7])[found.image_index])
        np.testing.assert_array_equal(
            archive["category_id"], np.array([10, 20])[found.category_index]
        )
        assert json.loads(str(archive["header"]))["dataset"] == "birds"
    assert os.listdir(tmp_path) == ["r.npz"]


def test_no_detections(tmp_path: Path) -> None:
    for truth in (dataset(), dataset(image_ids=())):
        write_store(tmp_path / "r.npz", NO_DETECTIONS, truth, dataset="x")
        assert len(read_store(tmp_path / "r.npz", truth)) == 0


def test_image_ids_that_are_texts_or_large(tmp_path: Path) -> None:
    for image_ids in (("b", "ä", "c"), (2**40, 1, 2)):
        truth = dataset(image_ids=image_ids)
        write_store(tmp_path / "r.npz", detections(), truth, dataset="x")
        assert_equal(read_store(tmp_path / "r.npz", truth), detections())


def test_image_ids_of_two_types(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ids of the types int and str; .* as JSON"):
        write_store(tmp_path / "r.npz", NO_DETECTIONS, dataset(image_ids=(1, "a")), dataset="x")
    assert not os.listdir(tmp_path)


def test_masks(tmp_path: Path) -> None:
    truth = dataset()
    masks = [{"size": [10, 12], "counts": counts} for counts in ("0a", "00l3", "")]
    found = detections(count=3)
    both = Detections(
        found.image_index, found.category_index, found.boxes, found.scores, np.array(masks)
    )
    write_store(tmp_path / "r.npz", both, truth, dataset="x")
    assert read_store(tmp_path / "r.npz", truth, iou_type="segm").masks.tolist() == masks
    assert read_store(tmp_path / "r.npz", truth).masks is None
    write_store(tmp_path / "boxes.npz", found, truth, dataset="x")
    with pytest.raises(ValueError, match=r"lacks the columns mask_sizes.*by the IoU type bbox"):
        read_store(tmp_path / "boxes.npz", truth, iou_type="segm")
    masks[1]["size"] = [10, 10]
    write_store(tmp_path / "r.npz", both, truth, dataset="x")
    with pytest.raises(ValueError, match=r"1 of 3 .* neither RLE of the image's size"):
        read_store(tmp_path / "r.npz", truth, iou_type="segm")


@pytest.mark.parametrize(
    "other", [dataset(image_ids=(7, 3, 6)), dataset(category_ids=(10, 21)), dataset((7, 3))]
)
def test_results_of_another_dataset(tmp_path: Path, other: GroundTruth) -> None:
    write_store(tmp_path / "r.npz", detections(), dataset(), dataset="birds_val")
    with pytest.raises(
        ValueError, match=r"results of birds_val \(3 images, 2 categories\), not of truth.json"
    ):
        read_store(tmp_path / "r.npz", other)


def test_fingerprint_is_of_the_ids_alone() -> None:
    assert fingerprint(dataset()) == fingerprint(dataset((3, 5, 7), (20, 10)))
    assert fingerprint(dataset()) != fingerprint(dataset(("3", "5", "7")))


def rewrite(path: Path, **changes) -> None:
    with np.load(path, allow_pickle=True) as archive:
        columns = {**archive, **changes}
    np.savez(path, **{name: value for name, value in columns.items() if value is not None})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image_id", 99, "2 of 4 detections have an image_id that is none of the dataset's 3"),
        ("category_id", 11, "2 of 4 detections have a category_id that is none of .* 2"),
        ("scores", math.nan, "2 of 4 detections have a score that is no finite number"),
        ("boxes", math.inf, "2 of 4 detections have a bbox that is not four finite numbers"),
        ("boxes", -1, "2 of 4 detections have a bbox that is not four finite numbers"),
    ],
)
def test_wrong_rows(tmp_path: Path, column: str, value: float, message: str) -> None:
    path, truth = tmp_path / "r.npz", dataset()
    write_store(path, detections(count=4), truth, dataset="x")
    with np.load(path) as archive:
        values = archive[column]
    values[[2, 3]] = value
    rewrite(path, **{column: values})
    with pytest.raises(ValueError, match=message) as error:
        read_store(path, truth)
    assert "number 2: " in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"header": None}, "no results file of vastdet"),
        ({"header": np.array('{"format": "other"}')}, "no results file of vastdet"),
        ({"header": np.array("{")}, "is damaged: .*; write it again"),
        ({"boxes": None}, "lacks the columns boxes; write it again"),
        (
            {"boxes": np.zeros((3, 4))},
            r"column boxes is float64 of shape \(3, 4\), expected .*4, 4",
        ),
        ({"image_id": np.zeros(4)}, "column image_id is float64"),
        ({"scores": np.zeros(())}, "column scores is float64 of shape"),
        ({"scores": np.array([None] * 4)}, "is damaged: .*allow_pickle"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "r.npz"
    write_store(path, detections(count=4), dataset(), dataset="x")
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=message):
        read_store(path, dataset())


def test_newer_version(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(results_store, "VERSION", 9)
    write_store(tmp_path / "r.npz", detections(), dataset(), dataset="x")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has version 9, this vastdet reads 1; update"):
        read_store(tmp_path / "r.npz", dataset())


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_cut_off_or_changed(tmp_path: Path, part: float) -> None:
    path, truth = tmp_path / "r.npz", dataset()
    write_store(path, detections(), truth, dataset="x")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match="is damaged"):
        read_store(path, truth)
    middle = content.index(b"scores") + 200
    path.write_bytes(content[:middle] + b"\xff" + content[middle + 1 :])
    with pytest.raises(ValueError, match="is damaged"):
        read_store(path, truth)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_results(tmp_path / "r.npz", dataset())


def test_ids_are_looked_up_as_in_json(tmp_path: Path) -> None:
    truth = dataset()
    rows = [{"image_id": 5, "category_id": 20, "bbox": [0.1, 2, 3, 4], "score": 0.7}]
    write_store(tmp_path / "r.npz", from_results(rows, truth), truth, dataset="x")
    assert_equal(read_store(tmp_path / "r.npz", truth), from_results(rows, truth))
