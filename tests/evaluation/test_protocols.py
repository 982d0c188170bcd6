# SPDX-License-Identifier: Apache-2.0
"""LVIS's AP and Fixed-AP: figures of lvis 0.5.3, and the rules written out in loops."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest

from vastdet.evaluation import protocols
from vastdet.evaluation.detections import NO_DETECTIONS, Detections
from vastdet.evaluation.ground_truth import GroundTruth, from_coco, from_json
from vastdet.evaluation.protocols import (
    coco_protocols,
    lvis_protocols,
    score_protocols,
    v3det_protocols,
)
from vastdet.evaluation.results_file import from_results, read_results

FIXTURE = "eval_fixtures/lvis_val_100"
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RANGES = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
BOX, FAR = [10, 10, 50, 50], [200, 200, 50, 50]


def test_equals_lvis_0_5_3(shared_data: Path) -> None:
    folder = shared_data / FIXTURE
    truth = from_json(folder / "lvis_val_100.json")
    found = read_results(folder / "seeded_results.json", truth)
    assert np.bincount(found.image_index).max() > 300
    expected = json.loads((folder / "expected_lvis_0.5.3.json").read_text())["results"]
    summary = score_protocols(lvis_protocols(truth), truth, found)["bbox"].summary
    for name, value in expected.items():
        key = {"AR@300": "AR300"}.get(name, name.removesuffix("@300"))
        difference = abs(summary[key] / 100 - value)
        assert difference < 1e-12, f"{name} differs by {difference}"


def make(
    boxes: list[dict], found: list[dict], *, images: list[dict], num_categories: int = 3
) -> tuple[GroundTruth, Detections]:
    lists: dict = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    truth = from_coco(
        {
            "images": [{"id": i, **lists, **image} for i, image in enumerate(images)],
            "categories": [
                {"id": k, "name": f"c{k}", "frequency": "rcf"[k % 3]} for k in range(num_categories)
            ],
            "annotations": [{"image_id": 0, "category_id": 0, **box} for box in boxes],
        }
    )
    defaults = {"image_id": 0, "category_id": 0, "score": 0.5}
    return truth, from_results([{**defaults, **row} for row in found], truth)


def ap(truth: GroundTruth, found: Detections, key: str = "bbox") -> float:
    scores = score_protocols(lvis_protocols(truth), truth, found)[key]
    assert scores.summary["AP"] == pytest.approx(reference(truth, found, key)["AP"], nan_ok=True)
    return scores.summary["AP"]


def kept_by_limit(found: Detections, key: str) -> list[int]:
    """The limits in loops: the best 300 of an image, or the best of a category over all images."""
    fixed = key.endswith("_fixed")
    groups = found.category_index if fixed else found.image_index
    limit = protocols.FIXED_AP_DETECTIONS if fixed else protocols.VAST_MAX_DETS
    kept = []
    for group in np.unique(groups).tolist():
        members = [i for i in range(len(found)) if groups[i] == group]
        kept += sorted(members, key=lambda i: -found.scores[i])[:limit]
    return sorted(kept)


def reference(truth: GroundTruth, found: Detections, key: str) -> dict[str, float]:
    """LVIS's rules (arXiv 1908.03195, section 4) in loops over categories, images and boxes."""
    found = found[np.array(kept_by_limit(found, key), dtype=np.int64)]
    absent, incomplete = (set(map(tuple, p.tolist())) for p in (truth.absent, truth.incomplete))
    numbers: dict[str, list[float]] = {}
    for k in range(truth.num_categories):
        for letter, limits in RANGES.items():
            rows = [
                image_rows(truth, found, k, image, limits, absent, incomplete)
                for image in range(len(truth.image_ids))
            ]
            total = sum(count for count, _ in rows)
            if not total:
                continue
            ranked = sorted((r for _, part in rows for r in part), key=lambda row: -row[0])
            curves = [curve(ranked, t, total) for t in range(len(THRESHOLDS))]
            numbers.setdefault(f"AP{letter}", []).append(np.mean([c[0] for c in curves]))
            numbers.setdefault(f"AR{letter}", []).append(np.mean([c[1] for c in curves]))
            if not letter:
                numbers.setdefault("AP50", []).append(curves[0][0])
                numbers.setdefault(f"AP{'rcf'[k % 3]}", []).append(np.mean([c[0] for c in curves]))
    return {"AP": np.nan, **{key: 100 * float(np.mean(v)) for key, v in numbers.items()}}


def image_rows(truth, found, k, image, limits, absent, incomplete):
    """Boxes to find, and (score, state at each threshold) of each detection; 0 is ignored."""
    boxes = np.flatnonzero((truth.image_index == image) & (truth.category_index == k))
    outside = [not limits[0] <= truth.areas[b] <= limits[1] for b in boxes]
    boxes = boxes[np.argsort(outside, kind="stable")]
    outside = sorted(outside)
    if not len(boxes) and (image, k) not in absent:
        return 0, []
    rows = np.flatnonzero((found.image_index == image) & (found.category_index == k))
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    overlap = np.zeros((len(rows), len(boxes)))
    if overlap.size:
        crowd = [0] * len(boxes)
        overlap = mask_util.iou(found.boxes[rows], truth.boxes[boxes], crowd)
    states = np.zeros((len(rows), len(THRESHOLDS)), dtype=int)
    for t, threshold in enumerate(THRESHOLDS):
        taken: set[int] = set()
        for d, row in enumerate(rows):
            best, at = threshold, None
            for g in range(len(boxes)):
                if g in taken or (at is not None and not outside[at] and outside[g]):
                    continue
                if overlap[d, g] >= best:
                    best, at = overlap[d, g], g
            if at is not None:
                taken.add(at)
                states[d, t] = 0 if outside[at] else 1
            else:
                area = found.boxes[row, 2] * found.boxes[row, 3]
                judged = limits[0] <= area <= limits[1] and (image, k) not in incomplete
                states[d, t] = -1 if judged else 0
    count = len(boxes) - sum(outside)
    return count, [(found.scores[r], states[d]) for d, r in enumerate(rows)]


def curve(ranked, t: int, total: int) -> tuple[float, float]:
    """AP at 101 recalls and the last recall of detections in the order of their scores."""
    states = np.array([state[t] for _, state in ranked if state[t]], dtype=int)
    right, wrong = np.cumsum(states == 1), np.cumsum(states == -1)
    recall = right / total
    precision = right / np.maximum(right + wrong, 1)
    values = [
        precision[recall >= r].max() if (recall >= r).any() else 0.0 for r in np.linspace(0, 1, 101)
    ]
    return float(np.mean(values)), float(recall[-1]) if len(recall) else 0.0


def test_categories_count_only_where_they_were_looked_for() -> None:
    unknown = (
        [{"bbox": BOX}],
        [{"bbox": BOX, "score": 0.5}, {"bbox": FAR, "image_id": 1, "score": 1}],
    )
    assert ap(*make(*unknown, images=[{}, {}])) == pytest.approx(100)
    assert ap(*make(*unknown, images=[{}, {"neg_category_ids": [0]}])) == pytest.approx(50)
    assert ap(*make(*unknown, images=[{}, {"neg_category_ids": [1]}])) == pytest.approx(100)


def test_incomplete_labels_forgive_what_matches_nothing() -> None:
    case = [{"bbox": BOX}], [{"bbox": BOX, "score": 0.5}, {"bbox": FAR, "score": 0.9}]
    assert ap(*make(*case, images=[{}])) == pytest.approx(50)
    incomplete = {"not_exhaustive_category_ids": [0]}
    assert ap(*make(*case, images=[incomplete])) == pytest.approx(100)


def test_the_limits_differ(monkeypatch) -> None:
    monkeypatch.setattr(protocols, "VAST_MAX_DETS", 2)
    monkeypatch.setattr(protocols, "FIXED_AP_DETECTIONS", 2)
    boxes = [{"bbox": BOX, "category_id": k} for k in range(3)]
    found = [{"bbox": BOX, "category_id": k, "score": 0.9 - k / 10} for k in range(3)]
    truth, detections = make(boxes, found, images=[{}])
    assert ap(truth, detections) == pytest.approx(200 / 3)  # the third category is cut off
    assert ap(truth, detections, "bbox_fixed") == pytest.approx(100)
    # Two better detections elsewhere push the right one out of its category.
    found = [{"bbox": FAR, "image_id": i, "score": 0.9} for i in (1, 2)] + [{"bbox": BOX}]
    truth, detections = make([{"bbox": BOX}], found, images=[{}, {}, {}])
    assert ap(truth, detections) == pytest.approx(100)
    assert ap(truth, detections, "bbox_fixed") == 0
    results = score_protocols(lvis_protocols(truth), truth, detections)
    assert "AR2" in results["bbox"].summary


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lvis_protocols, "2 of 5 detections do not count: 1 images have more than 2"),
        (v3det_protocols, "1 of 5 detections do not count: 1 pairs of image and category have"),
        (partial(coco_protocols, max_dets=(1, 2)), "1 of 5 detections do not count: 1 pairs"),
    ],
)
def test_what_is_beyond_a_limit_is_said_once(monkeypatch, caplog, build, message: str) -> None:
    monkeypatch.setattr(protocols, "VAST_MAX_DETS", 2)
    found = [{"bbox": BOX, "category_id": k, "score": s} for k, s in ((0, 0.9), (0, 0.8), (0, 0.7))]
    found += [{"bbox": BOX, "category_id": 1}, {"bbox": BOX, "image_id": 1}]
    truth, found = make([{"bbox": BOX}], found, images=[{}, {}])
    score_protocols(build(truth), truth, found)
    assert caplog.text.count("do not count") == 1
    assert message in caplog.text
    caplog.clear()
    score_protocols(build(truth), truth, found[np.array([0, 1, 4])])
    assert "do not count" not in caplog.text


def test_each_protocol_is_announced() -> None:
    truth, found = make([{"bbox": BOX}], [{"bbox": BOX}], images=[{}])
    steps: list[str] = []
    score_protocols(lvis_protocols(truth), truth, found, step=steps.append)
    assert steps == ["LVIS box AP", "LVIS box Fixed-AP"]


def test_nothing_found_nothing_labelled() -> None:
    truth, _ = make([{"bbox": BOX}], [], images=[{}])
    assert ap(truth, NO_DETECTIONS) == ap(truth, NO_DETECTIONS, "bbox_fixed") == 0
    truth, found = make([], [{"bbox": BOX}], images=[{"neg_category_ids": [0]}])
    assert np.isnan(ap(truth, found))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("key", ["bbox", "bbox_fixed"])
def test_random_cases_equal_loops(monkeypatch, seed: int, key: str) -> None:
    monkeypatch.setattr(protocols, "VAST_MAX_DETS", 7)
    monkeypatch.setattr(protocols, "FIXED_AP_DETECTIONS", 8)
    generator = np.random.default_rng(seed)
    boxes, found, images = [], [], []
    for image in range(10):
        shuffled = generator.permutation(6).tolist()
        images.append(
            {"neg_category_ids": shuffled[3:5], "not_exhaustive_category_ids": shuffled[:1]}
        )
        for _ in range(generator.integers(0, 7)):
            box = generator.integers([0, 0, 5, 5], 200)
            place = {"image_id": image, "category_id": shuffled[generator.integers(0, 3)]}
            boxes.append({**place, "bbox": box.tolist()})
            for _ in range(generator.integers(0, 5)):
                moved = np.maximum(box + generator.integers(-7, 8, 4), 0).tolist()
                guess = int(generator.integers(0, 6)) if generator.random() < 0.3 else None
                row = {**place, "bbox": moved, "score": round(float(generator.random()), 2)}
                found.append(row if guess is None else {**row, "category_id": guess})
    truth, detections = make(boxes, found, images=images, num_categories=6)
    assert len(kept_by_limit(detections, key)) < len(detections)
    summary = score_protocols(lvis_protocols(truth), truth, detections)[key].summary
    expected = reference(truth, detections, key)
    assert expected["AP"] > 5
    for name, value in expected.items():
        name = {"AR": "AR7" if key == "bbox" else "AR8"}.get(name, name)
        assert summary[name] == pytest.approx(value, abs=1e-9), name


def test_what_lvis_needs() -> None:
    truth, _ = make([{"bbox": BOX}], [], images=[{}])
    with pytest.raises(ValueError, match=r"'pycocotools' has COCO's rules only.*hotcoco"):
        lvis_protocols(truth, engine="pycocotools")
    plain = from_coco({"images": [], "categories": [{"id": 1, "name": "owl"}], "annotations": []})
    with pytest.raises(ValueError, match="has no neg_category_ids in its images"):
        lvis_protocols(plain)


def test_descriptions_name_the_limit() -> None:
    truth, _ = make([{"bbox": BOX}], [], images=[{}])
    image, fixed = lvis_protocols(truth)
    assert "300 best detections of each image" in image.description
    assert "10,000 best detections of each category" in fixed.description
    [coco] = coco_protocols(truth, iou_type="segm", max_dets=(1, 50))
    assert coco.title == "COCO mask AP"
    assert "50 best detections of each category and image" in coco.description
