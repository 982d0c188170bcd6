# SPDX-License-Identifier: Apache-2.0
"""Both engines give COCO's numbers: published figures, pycocotools figures, and every edge."""

import json
from pathlib import Path

import numpy as np
import pytest

from vastdet.evaluation.detections import NO_DETECTIONS, Detections
from vastdet.evaluation.engines import ENGINES, accumulate
from vastdet.evaluation.ground_truth import GroundTruth, from_coco, from_json
from vastdet.evaluation.metrics import score
from vastdet.evaluation.results_file import from_results, read_results

FIXTURES = "eval_fixtures/coco_val2014_100"
FAKE_100 = f"{FIXTURES}/instances_val2014_100.json"


def assert_engines_agree(truth: GroundTruth, found: Detections, **options) -> dict[str, float]:
    ours, reference = (accumulate(truth, found, engine=engine, **options) for engine in ENGINES)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_allclose(getattr(ours, name), getattr(reference, name), rtol=0, atol=1e-9)
    assert ours.max_dets == reference.max_dets
    assert ours.area_labels == reference.area_labels
    rows = score(ours, truth, found).categories
    expected = score(reference, truth, found).categories
    for name in ("ap", "ap50", "ap75", "aps", "apm", "apl", "ar"):
        np.testing.assert_allclose(getattr(rows, name), getattr(expected, name), rtol=0, atol=1e-7)
    return score(ours, truth, found).summary


@pytest.mark.parametrize(
    ("iou_type", "results"),
    [
        ("bbox", "instances_val2014_fakebbox100_results.json"),
        ("segm", "instances_val2014_fakesegm100_results.json"),
    ],
)
def test_published_coco_results(shared_data: Path, iou_type: str, results: str) -> None:
    truth = from_json(shared_data / FAKE_100)
    found = read_results(shared_data / FIXTURES / results, truth, iou_type=iou_type)
    summary = assert_engines_agree(truth, found, iou_type=iou_type)
    figures = shared_data / FIXTURES / "expected_pycocotools_2.0.11.json"
    expected = json.loads(figures.read_text())
    assert list(summary) == expected["order"]
    np.testing.assert_allclose(
        np.array(list(summary.values())) / 100, expected[iou_type], rtol=0, atol=1e-9
    )
    assert round(summary["AP"] / 100, 3) == {"bbox": 0.505, "segm": 0.320}[iou_type]


def test_published_padilla_result(shared_data: Path) -> None:
    folder = shared_data / "eval_fixtures/padilla"
    truth = from_json(folder / "sampled_gts_bbox_area.json")
    found = read_results(folder / "cocoapi_results.json", truth)
    assert assert_engines_agree(truth, found)["AP"] == pytest.approx(50.3647, abs=5e-5)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_detections(shared_data: Path, split: str) -> None:
    folder = shared_data / "eval_fixtures/real_detections"
    truth = from_json(shared_data / f"coco_cc/annotations/{split}.json")
    found = read_results(folder / f"coco_cc_{split}_dets.json", truth)
    summary = assert_engines_agree(truth, found)
    figures = json.loads((folder / "expected_pycocotools_2.0.11.json").read_text())
    np.testing.assert_allclose(
        np.array(list(summary.values())) / 100,
        figures[f"coco_cc_{split}"]["stats"],
        rtol=0,
        atol=1e-9,
    )


def make_truth(boxes: list[dict], *, num_images: int = 2, num_categories: int = 3) -> GroundTruth:
    return from_coco(
        {
            "images": [{"id": i, "height": 500, "width": 500} for i in range(num_images)],
            "categories": [{"id": k, "name": f"c{k}"} for k in range(num_categories)],
            "annotations": [
                {"id": i, "image_id": 0, "category_id": 0, **box} for i, box in enumerate(boxes)
            ],
        }
    )


def make_found(truth: GroundTruth, rows: list[dict]) -> Detections:
    defaults = {"image_id": 0, "category_id": 0, "score": 0.5}
    return from_results([{**defaults, **row} for row in rows], truth)


BOX = {"bbox": [10, 10, 50, 50], "area": 2500}
FAR = {"bbox": [200, 200, 50, 50], "area": 2500}


def test_no_detections() -> None:
    truth = make_truth([BOX])
    summary = assert_engines_agree(truth, NO_DETECTIONS)
    assert summary["AP"] == summary["AR100"] == summary["APm"] == 0
    assert np.isnan(summary["APs"])  # there is no small object


def test_nothing_at_all() -> None:
    truth = make_truth([], num_images=0)
    assert all(np.isnan(list(assert_engines_agree(truth, NO_DETECTIONS).values())))


def test_detections_without_ground_truth_are_undefined() -> None:
    truth = make_truth([])
    summary = assert_engines_agree(truth, make_found(truth, [BOX, FAR]))
    assert all(np.isnan(list(summary.values())))


def test_false_alarms_in_an_image_without_boxes_cost_precision() -> None:
    truth = make_truth([BOX])
    rows = [{**BOX, "score": 0.5}, {**FAR, "image_id": 1, "score": 0.9}]
    assert assert_engines_agree(truth, make_found(truth, rows))["AP"] == pytest.approx(50)


def test_category_without_ground_truth_is_left_out_of_the_mean() -> None:
    truth = make_truth([BOX])
    found = make_found(truth, [BOX, {**BOX, "category_id": 1}, {**BOX, "category_id": 2}])
    assert assert_engines_agree(truth, found)["AP"] == pytest.approx(100)
    rows = score(accumulate(truth, found), truth, found).categories
    assert rows.ap[0] == pytest.approx(100)
    assert np.isnan(rows.ap[1:]).all()
    assert rows.num_detections.tolist() == [1, 1, 1]
    assert rows.num_boxes.tolist() == [1, 0, 0]


def test_crowd_takes_any_number_of_detections() -> None:
    crowd = {"bbox": [100, 100, 300, 300], "area": 90000, "iscrowd": 1}
    truth = make_truth([BOX, crowd])
    inside = [{"bbox": [120 + i, 130, 40, 40], "score": 0.9} for i in range(5)]
    found = make_found(truth, [*inside, {**BOX, "score": 0.1}])
    assert assert_engines_agree(truth, found)["AP"] == pytest.approx(100)
    only_crowd = make_truth([crowd])
    assert np.isnan(assert_engines_agree(only_crowd, found)["AP"])


def test_area_comes_from_the_annotation_not_the_box() -> None:
    truth = make_truth([{"bbox": [10, 10, 50, 50], "area": 500}])
    summary = assert_engines_agree(truth, make_found(truth, [BOX]))
    assert summary["APs"] == pytest.approx(100)
    assert np.isnan(summary["APm"])


@pytest.mark.parametrize("area", [1024, 9216])
def test_area_on_a_border_counts_on_both_sides(area: int) -> None:
    side = area**0.5
    box = {"bbox": [10, 10, side, side], "area": area}
    truth = make_truth([box])
    summary = assert_engines_agree(truth, make_found(truth, [box]))
    pair = ("APs", "APm") if area == 1024 else ("APm", "APl")
    assert [summary[key] for key in pair] == pytest.approx([100, 100])


@pytest.mark.parametrize("order", [1, -1])
def test_ties_keep_the_order_of_the_file(order: int) -> None:
    truth = make_truth([BOX])
    summary = assert_engines_agree(truth, make_found(truth, [BOX, FAR][::order]))
    assert summary["AP"] == pytest.approx(100 if order == 1 else 50)


def test_ties_across_images_follow_image_ids_not_the_file() -> None:
    truth = make_truth([BOX])
    rows = [{**FAR, "image_id": 1}, BOX]
    assert assert_engines_agree(truth, make_found(truth, rows))["AP"] == pytest.approx(100)


def test_duplicates_are_false_alarms() -> None:
    truth = make_truth([BOX, FAR])
    found = make_found(truth, [BOX, BOX, FAR])
    summary = assert_engines_agree(truth, found)
    # Recall 1/2 at precision 1, recall 1 at 2/3: 51 thresholds up to 0.50, 50 above.
    assert summary["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101 * 100)


def many(count: int) -> tuple[GroundTruth, Detections]:
    """One box found by the lowest-scored of `count` detections."""
    truth = make_truth([BOX])
    scores = np.linspace(0.9, 0.1, count).tolist()
    rows = [{**FAR, "score": value} for value in scores]
    return truth, make_found(truth, [*rows[:-1], {**BOX, "score": scores[-1]}])


def test_more_detections_than_the_limit() -> None:
    truth, found = many(101)
    assert assert_engines_agree(truth, found)["AP"] == 0
    summary = assert_engines_agree(truth, found, max_dets=(1, 100, 300))
    assert summary["AP"] == pytest.approx(100 / 101)
    assert list(summary)[6:9] == ["AR1", "AR100", "AR300"]
    assert [summary[key] for key in ("AR1", "AR100", "AR300")] == pytest.approx([0, 0, 100])


@pytest.mark.parametrize("max_dets", [(5,), (2, 3), (1, 2, 3, 1000)])
def test_any_number_of_limits(max_dets: tuple[int, ...]) -> None:
    truth, found = many(4)
    summary = assert_engines_agree(truth, found, max_dets=max_dets)
    assert f"AR{max_dets[-1]}" in summary
    assert summary["AP"] == pytest.approx(0 if max_dets[-1] < 4 else 25)


def test_boxes_without_area_and_beyond_the_image() -> None:
    point = {"bbox": [30, 30, 0, 0], "area": 0}
    outside = {"bbox": [-20, -20, 40, 40], "area": 1600}
    truth = make_truth([point, outside])
    assert_engines_agree(truth, make_found(truth, [point, outside]))


@pytest.mark.parametrize("seed", range(6))
def test_random_scenes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    boxes, rows = [], []
    for image in range(12):
        for _ in range(generator.integers(0, 9)):
            corner, size = generator.integers(0, 200, 2), generator.integers(5, 150, 2)
            place = {"image_id": image, "category_id": int(generator.integers(0, 4))}
            box = [*corner.tolist(), *size.tolist()]
            crowd = int(generator.random() < 0.15)
            area = float(size.prod() * generator.choice([1, 0.4]))
            boxes.append({**place, "bbox": box, "area": area, "iscrowd": crowd})
            for _ in range(generator.integers(0, 5)):
                moved = np.maximum(np.array(box) + generator.integers(-8, 9, 4), 0)
                value = round(float(generator.random()), 1)
                rows.append({**place, "bbox": moved.tolist(), "score": value})
    truth = make_truth(boxes, num_images=14, num_categories=6)
    found = make_found(truth, rows)
    assert_engines_agree(truth, found)
    assert_engines_agree(truth, found, max_dets=(1, 2, 5))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("limit", ["BLOCK_CATEGORIES", "BLOCK_DETECTIONS"])
def test_blocks_of_categories_change_nothing(monkeypatch, engine: str, limit: str) -> None:
    generator = np.random.default_rng(0)
    rows = [
        {
            "image_id": int(i % 2),
            "category_id": int(k),
            "bbox": [*generator.integers(0, 50, 2).tolist(), 40, 40],
        }
        for i, k in enumerate(generator.integers(0, 7, 60))
    ]
    truth = make_truth([row for row in rows if row["category_id"] != 3][:25], num_categories=7)
    found = make_found(truth, [{**row, "score": generator.random()} for row in rows])
    whole = accumulate(truth, found, engine=engine)
    monkeypatch.setattr(f"vastdet.evaluation.engines.{limit}", 2)
    parts = accumulate(truth, found, engine=engine)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert (whole.precision[:, :, 3] == -1).all()
    assert whole.precision.max() > 0


@pytest.mark.parametrize("seed", range(2))
def test_random_masks(seed: int) -> None:
    generator = np.random.default_rng(seed)
    boxes, rows = [], []
    for image in range(4):
        for _ in range(5):
            x, y, w, h = generator.integers(5, 100, 4).tolist()
            corners = np.array([x, y, x + w, y, x + w, y + h, x, y + h], dtype=float)
            crowd = generator.random() < 0.2
            runs = {"size": [500, 500], "counts": [x * 500 + y, h, 250000 - x * 500 - y - h]}
            shape = runs if crowd else [corners.tolist()]
            place = {"image_id": image, "category_id": int(generator.integers(0, 2))}
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": int(crowd)}
            boxes.append({**place, **box, "segmentation": shape})
            moved = (corners + generator.normal(0, 3, 8)).tolist()
            value = round(float(generator.random()), 1)
            rows.append({**place, "segmentation": [moved], "score": value})
    truth = make_truth(boxes, num_images=4, num_categories=3)
    found = from_results(rows, truth, iou_type="segm")
    assert assert_engines_agree(truth, found, iou_type="segm")["AP"] > 20


def test_wrong_requests() -> None:
    truth = make_truth([BOX])
    with pytest.raises(ValueError, match=r"unknown COCO engine 'fast'.*hotcoco.*pycocotools"):
        accumulate(truth, NO_DETECTIONS, engine="fast")
    with pytest.raises(ValueError, match="unknown IoU type 'mask'"):
        accumulate(truth, NO_DETECTIONS, iou_type="mask")
    for limits in ((), (0,), (10, 1), (1, 1)):
        with pytest.raises(ValueError, match="expected ascending positive"):
            accumulate(truth, NO_DETECTIONS, max_dets=limits)
    with pytest.raises(ValueError, match=r"1 of 1 annotations .* have no segmentation"):
        accumulate(truth, NO_DETECTIONS, iou_type="segm")
    shape = {**BOX, "segmentation": [[10, 10, 60, 10, 60, 60]]}
    with pytest.raises(ValueError, match=r"1 of 2 annotations .* have no segmentation"):
        accumulate(make_truth([shape, BOX]), NO_DETECTIONS, iou_type="segm")
    segmented = make_truth([shape])
    with pytest.raises(ValueError, match="detections have no segmentation"):
        accumulate(segmented, make_found(segmented, [BOX]), iou_type="segm")
