# SPDX-License-Identifier: Apache-2.0
"""Results files: what is read, and that each fault names its first offender and the count."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vastdet.evaluation import results_file
from vastdet.evaluation.detections import to_coco
from vastdet.evaluation.ground_truth import GroundTruth, from_coco
from vastdet.evaluation.results_file import (
    from_results,
    json_pieces,
    read_results,
    write_results_json,
)
from vastdet.evaluation.results_store import write_store

GOOD = {"image_id": 3, "category_id": 20, "bbox": [1, 2, 3, 4], "score": 0.5}
RLE = {"size": [10, 10], "counts": [11, 4, 85]}


@pytest.fixture
def truth() -> GroundTruth:
    return from_coco(
        {
            "images": [{"id": i, "height": 10, "width": 10} for i in range(1, 6)],
            "categories": [{"id": 10, "name": "cat"}, {"id": 20, "name": "owl"}],
            "annotations": [],
        }
    )


def test_round_trip(truth: GroundTruth) -> None:
    rows = [GOOD, {**GOOD, "image_id": 1, "category_id": 10, "bbox": [0.1, 0.2, 0.3, 1e-7]}]
    found = from_results(rows, truth)
    assert found.image_index.tolist() == [2, 0]
    assert found.category_index.tolist() == [1, 0]
    assert to_coco(found, truth) == rows


def test_empty_file(truth: GroundTruth, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    assert len(read_results(tmp_path / "results.json", truth)) == 0


def test_masks_in_every_form(truth: GroundTruth) -> None:
    polygon = [[1, 1, 5, 1, 5, 5, 1, 5]]
    shapes = [RLE, polygon]
    rows = [{"image_id": 1, "category_id": 10, "score": 1, "segmentation": s} for s in shapes]
    found = from_results(rows, truth, iou_type="segm")
    assert found.masks is not None
    assert all(mask["size"] == [10, 10] for mask in found.masks)
    np.testing.assert_array_equal(found.boxes[0], [1, 1, 1, 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "1 of 4 detections have an image_id that is none of the dataset's 5"),
        ({"category_id": 11}, "1 of 4 detections have a category_id that is none of .* 2"),
        ({"score": math.nan}, "1 of 4 detections have a score that is no finite number"),
        ({"score": "0.5"}, "have a score that is no finite number"),
        ({"score": None}, "have a score that is no finite number"),
        ({"bbox": [1, 2, math.nan, 4]}, "have a bbox that is not four finite numbers"),
        ({"bbox": [1, 2, 3]}, "have a bbox that is not four finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, "have a bbox that is not four finite numbers"),
        ({"bbox": [1, 2, "3", 4]}, "have a bbox that is not four finite numbers"),
        ({"bbox": [1, 2, True, 4]}, "have a bbox that is not four finite numbers"),
        ({"bbox": 5}, "have a bbox that is not four finite numbers"),
        ({"score": 10**400}, "have a score that is no finite number"),
        ({"image_id": [3]}, "that is neither number nor text"),
        ({"category_id": None}, "that is neither number nor text"),
    ],
)
def test_faults(truth: GroundTruth, tmp_path: Path, change: dict, message: str) -> None:
    rows = [GOOD, {**GOOD, "image_id": 4}, {**GOOD, **change}, {**GOOD, "image_id": 5}]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message) as error:
        read_results(path, truth)
    assert str(path) in str(error.value)
    assert "number 2:" in str(error.value)


@pytest.mark.parametrize("key", list(GOOD))
def test_missing_field(truth: GroundTruth, key: str) -> None:
    bad = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(
        ValueError, match=r"2 of 3 detections lack one of .*; the first is number 1"
    ):
        from_results([GOOD, bad, bad], truth)


@pytest.mark.parametrize(
    "shape",
    [None, [], [1, 2, 3], {"size": [10, 10]}, {"size": [9, 10], "counts": [90]}],
)
def test_broken_masks(truth: GroundTruth, shape) -> None:
    row = {**GOOD, "segmentation": shape}
    with pytest.raises(ValueError, match="neither RLE of the image's size nor polygons"):
        from_results([row], truth, iou_type="segm")


def test_results_of_another_dataset(truth: GroundTruth) -> None:
    rows = [{**GOOD, "image_id": i} for i in (3, 100, 101, 102)]
    with pytest.raises(ValueError, match=r"3 of its 4 images .* the results of another dataset"):
        from_results(rows, truth)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a list of objects, got an object with the keys"),
        ("[1]", "expected a list of objects, got a list"),
        ("[{", "is not valid JSON.*expected a complete COCO results file"),
    ],
)
def test_not_a_results_file(truth: GroundTruth, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path / "results.json", truth)


def test_no_file(truth: GroundTruth, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is a folder, not a file"):
        read_results(tmp_path, truth)


def random_rows(count: int) -> list[dict]:
    generator = np.random.default_rng(0)
    numbers = generator.uniform(0, 50, (count, 5)).tolist()
    # A note has what looks like the end of an entry, and objects of its own.
    return [
        {"image_id": i % 5 + 1, "note": {"text": "}, {"}, "category_id": 10 + 10 * (i % 2)}
        | {"bbox": row[:4], "score": row[4]}
        for i, row in enumerate(numbers)
    ]


@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("piece", [3, 64, 300, 5000])
def test_pieces_of_any_size_make_the_whole(
    truth: GroundTruth, tmp_path: Path, monkeypatch, indent: int | None, piece: int
) -> None:
    monkeypatch.setattr(results_file, "PIECE_BYTES", piece)
    rows = [{**row, "note": {"text": ""}} for row in random_rows(50)]
    path = tmp_path / "results.json"
    path.write_text(f" {json.dumps(rows, indent=indent)}\n")
    pieces = list(json_pieces(path))
    assert [row for part in pieces for row in part] == rows
    assert len(pieces) > 1 or piece == 5000
    shares: list[float] = []
    found = read_results(path, truth, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    expected = from_results(rows, truth)
    for column in ("image_index", "category_index", "boxes", "scores"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))


@pytest.mark.parametrize("piece", [64, 300])
def test_text_that_looks_like_a_boundary(
    truth: GroundTruth, tmp_path: Path, monkeypatch, piece: int
) -> None:
    monkeypatch.setattr(results_file, "PIECE_BYTES", piece)
    rows = random_rows(20)
    (tmp_path / "results.json").write_text(json.dumps(rows))
    assert to_coco(read_results(tmp_path / "results.json", truth), truth) == [
        {key: row[key] for key in GOOD} for row in rows
    ]


def test_faults_are_counted_over_all_pieces(
    truth: GroundTruth, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(results_file, "PIECE_BYTES", 200)
    rows = [dict(GOOD) for _ in range(40)]
    rows[9]["score"] = math.nan  # a score comes after a category, whatever their order in the file
    rows[17]["category_id"] = rows[33]["category_id"] = 11
    (tmp_path / "results.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"2 of 40 .* category_id .* the first is number 17: "):
        read_results(tmp_path / "results.json", truth)


def test_cut_off_in_a_later_piece(truth: GroundTruth, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(results_file, "PIECE_BYTES", 200)
    (tmp_path / "results.json").write_text(json.dumps([GOOD] * 40)[:-50])
    with pytest.raises(ValueError, match=r"is not valid JSON.*expected a complete COCO results"):
        read_results(tmp_path / "results.json", truth)


def test_several_files_are_one(truth: GroundTruth, tmp_path: Path) -> None:
    rows = [{**GOOD, "image_id": i, "score": i / 8} for i in range(1, 6)]
    (tmp_path / "one.json").write_text(json.dumps(rows[2:]))
    write_store(tmp_path / "two.npz", from_results(rows[:2], truth), truth, dataset="x")
    shares: list[float] = []
    found = read_results(
        [tmp_path / "one.json", tmp_path / "two.npz"], truth, progress=shares.append
    )
    assert to_coco(found, truth) == rows
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_files_that_overlap(truth: GroundTruth, tmp_path: Path) -> None:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    paths[0].write_text(json.dumps([GOOD, {**GOOD, "image_id": 4}]))
    paths[1].write_text(json.dumps([{**GOOD, "category_id": 10}]))
    assert len(read_results(paths, truth)) == 3
    paths[1].write_text(json.dumps([{**GOOD, "image_id": 4}]))
    with pytest.raises(
        ValueError, match=r"1 pairs .* first image id 4 and category id 20; .* must not overlap"
    ):
        read_results(paths, truth)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_written_json_is_read_exactly(
    truth: GroundTruth, tmp_path: Path, monkeypatch, block: int
) -> None:
    monkeypatch.setattr(results_file, "JSON_BLOCK", block)
    rows = [{key: row[key] for key in GOOD} for row in random_rows(20)]
    write_results_json(tmp_path / "results.json", from_results(rows, truth), truth)
    assert json.loads((tmp_path / "results.json").read_text()) == rows


def test_numbers_that_json_lacks(truth: GroundTruth, tmp_path: Path) -> None:
    found = from_results([GOOD] * 4, truth)
    found.scores[[2, 3]] = math.nan
    with pytest.raises(ValueError, match=r"2 of 4 detections .* the first is number 2; "):
        write_results_json(tmp_path / "results.json", found, truth)
    assert not list(tmp_path.iterdir())
