# SPDX-License-Identifier: Apache-2.0
"""Tree-aware AP: V3Det's own figures, pycocotools with ignored copies, and the rule's edges."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from vastdet.evaluation import engines
from vastdet.evaluation.category_tree import descendant_copies, tree_aware_curves
from vastdet.evaluation.detections import NO_DETECTIONS, Detections
from vastdet.evaluation.engines import accumulate, pycocotools_dataset
from vastdet.evaluation.ground_truth import GroundTruth, from_coco, from_json
from vastdet.evaluation.metrics import Scores, score
from vastdet.evaluation.protocols import score_protocols, v3det_protocols
from vastdet.evaluation.results_file import from_results, read_results
from vastdet.vocabulary import CategoryHierarchy, CategorySpace

FIXTURE = "eval_fixtures/v3det_mini"
SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR300", "ARs", "ARm", "ARl")
GROUP = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl")
# animal over bird and pet; bird and pet over parrot, which so has two parents; pet over cat. The
# stone is in no relation, and "thing" above animal is a node that is no category.
NAMES = ("animal", "bird", "pet", "parrot", "cat", "stone")
EDGES = [
    ("thing", "animal"), ("animal", "bird"), ("animal", "pet"), ("bird", "parrot"),
    ("pet", "parrot"), ("pet", "cat"),
]  # fmt: skip
ABOVE = {
    "animal": (), "bird": ("animal",), "pet": ("animal",), "parrot": ("animal", "bird", "pet"),
    "cat": ("animal", "pet"), "stone": (),
}  # fmt: skip
SPACE = CategorySpace(
    names=NAMES,
    dataset_ids=tuple(range(6)),
    hierarchy=CategoryHierarchy.from_ids(EDGES, category_nodes=NAMES),
)
BOX, FAR = [10, 10, 50, 50], [200, 200, 50, 50]


def make(boxes: list[tuple], found: list[tuple], num_images: int = 2):
    """Boxes (name, box[, image[, crowd]]), detections (name, box, score[, image])."""
    truth = from_coco(
        {
            "images": [{"id": i, "height": 500, "width": 500} for i in range(num_images)],
            "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES)],
            "annotations": [
                {
                    "category_id": NAMES.index(name),
                    "bbox": box,
                    "image_id": rest[0] if rest else 0,
                    "iscrowd": rest[1] if len(rest) > 1 else 0,
                }
                for name, box, *rest in boxes
            ],
        },
        SPACE,
    )
    rows = [
        {
            "category_id": NAMES.index(name),
            "bbox": box,
            "score": value,
            "image_id": rest[0] if rest else 0,
        }
        for name, box, value, *rest in found
    ]
    return truth, from_results(rows, truth)


class ReferenceEval(COCOeval):
    """pycocotools with V3Det's rule written out: copies of boxes with an ignore flag."""

    def _prepare(self) -> None:
        super()._prepare()
        ordinary = [list(boxes) for boxes in self._gts.values()]
        for box in [box for boxes in ordinary for box in boxes]:
            for k, name in enumerate(NAMES):
                pair = (box["image_id"], k + 1)
                below = NAMES[box["category_id"] - 1] in ABOVE[name]
                if below and self._dts[pair]:
                    copy = {**box, "id": box["id"] + 1000 * (k + 1), "ignore": 1}
                    self._gts[pair].append(copy)


def reference(truth: GroundTruth, found: Detections) -> dict[str, np.ndarray]:
    everything = np.arange(len(NAMES))
    sides = []
    for side, areas in ((truth, truth.areas), (found, found.boxes[:, 2] * found.boxes[:, 3])):
        sides.append(pycocotools_dataset(truth, side, everything, areas, None))
    for row, crowd in zip(sides[0].dataset["annotations"], truth.is_crowd.tolist(), strict=True):
        row["iscrowd"] = int(crowd)
    for row, value in zip(sides[1].dataset["annotations"], found.scores.tolist(), strict=True):
        row["score"] = value
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = ReferenceEval(*sides, "bbox")
        evaluation.params.maxDets = [300]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def tree_aware(truth: GroundTruth, found: Detections) -> Scores:
    """The scores, after both engines were compared with the reference."""
    expected = reference(truth, found)
    for engine in engines.ENGINES:
        plain = accumulate(truth, found, engine=engine, max_dets=(300,))
        curves = tree_aware_curves(plain, truth, found, engine=engine)
        for name in ("precision", "recall", "scores"):
            difference = np.abs(getattr(curves, name) - expected[name]).max(initial=0)
            assert difference < 1e-9, f"{engine}: {name} differs by {difference}"
    return score(curves, truth, found)


def ap_of(scores: Scores) -> dict[str, float]:
    rows = dict(zip(NAMES, scores.categories.ap.tolist(), strict=True))
    return {name: ap for name, ap in rows.items() if not np.isnan(ap)}


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_equals_the_official_evaluation(shared_data: Path, engine: str) -> None:
    folder = shared_data / FIXTURE
    space = CategorySpace.from_v3det(
        folder / "gt.json", category_tree=folder / "category_tree.json"
    )
    truth = from_json(folder / "gt.json", space)
    found = read_results(folder / "seeded_results.json", truth)
    expected = json.loads((folder / "expected_v3det_official.json").read_text())
    results = score_protocols(v3det_protocols(truth, engine=engine), truth, found)
    for key, name in (("bbox", "plain"), ("bbox_tree", "ignore_parent_child")):
        scores = results[key]
        ours = [scores.summary[k] for k in SUMMARY]
        groups = [scores.groups[group][k] for group in ("base", "novel") for k in GROUP]
        for mine, official in ((ours, "stats"), (groups, "stats_ovd")):
            difference = np.abs(np.array(mine) / 100 - expected[name][official]).max()
            assert difference < 1e-12, f"{key} {official}: {difference}"
        base, novel = expected[name]["stats_ovd"][0], expected[name]["stats_ovd"][10]
        assert scores.summary["APovd"] / 100 == pytest.approx((base + 3 * novel) / 4)
        assert scores.summary["APnovel"] / 100 == pytest.approx(novel)


def test_a_descendant_of_the_label_is_not_judged() -> None:
    boxes = [("bird", BOX), ("parrot", FAR)]
    found = [("parrot", BOX, 0.9), ("parrot", FAR, 0.5), ("bird", BOX, 0.8)]
    truth, detections = make(boxes, found)
    assert ap_of(tree_aware(truth, detections)) == pytest.approx({"bird": 100, "parrot": 100})
    plain = score(accumulate(truth, detections, max_dets=(300,)), truth, detections)
    assert ap_of(plain)["parrot"] == pytest.approx(50)


def test_an_ancestor_of_the_label_stays_false() -> None:
    boxes = [("parrot", BOX), ("bird", FAR)]
    found = [("bird", BOX, 0.9), ("bird", FAR, 0.5)]
    assert ap_of(tree_aware(*make(boxes, found))) == pytest.approx({"bird": 50, "parrot": 0})


def test_both_parents_of_a_category_have_it_below() -> None:
    boxes = [("pet", BOX), ("bird", FAR), ("parrot", BOX, 1)]
    found = [("parrot", BOX, 0.9), ("parrot", FAR, 0.8), ("parrot", BOX, 0.5, 1)]
    assert ap_of(tree_aware(*make(boxes, found)))["parrot"] == pytest.approx(100)


def test_siblings_and_strangers_stay_false() -> None:
    boxes = [("bird", BOX), ("cat", FAR), ("stone", [400, 400, 50, 50])]
    found = [("cat", BOX, 0.9), ("cat", FAR, 0.5), ("stone", BOX, 0.9)]
    assert ap_of(tree_aware(*make(boxes, found))) == pytest.approx(
        {"bird": 0, "cat": 50, "stone": 0}
    )


def test_one_detection_takes_the_copy_of_a_box_and_any_number_that_of_a_crowd() -> None:
    twice = [("cat", BOX, 0.9), ("cat", BOX, 0.8), ("cat", FAR, 0.5)]
    assert ap_of(tree_aware(*make([("pet", BOX), ("cat", FAR)], twice)))["cat"] == pytest.approx(50)
    crowd = [("pet", BOX, 0, 1), ("cat", FAR)]
    assert ap_of(tree_aware(*make(crowd, twice)))["cat"] == pytest.approx(100)


def test_a_copy_does_not_give_a_category_ground_truth() -> None:
    truth, found = make([("animal", BOX)], [("cat", BOX, 0.9), ("animal", BOX, 0.1)])
    assert ap_of(tree_aware(truth, found)) == pytest.approx({"animal": 100})


def test_copies_stay_in_their_image() -> None:
    boxes = [("bird", BOX, 1), ("parrot", FAR)]
    found = [("parrot", BOX, 0.9), ("parrot", FAR, 0.5)]
    assert ap_of(tree_aware(*make(boxes, found)))["parrot"] == pytest.approx(50)


def test_nothing_found_nothing_labelled_no_image() -> None:
    truth, _ = make([("bird", BOX)], [])
    assert ap_of(tree_aware(truth, NO_DETECTIONS)) == {"bird": 0}
    assert ap_of(tree_aware(*make([], [("bird", BOX, 0.9)]))) == {}
    assert ap_of(tree_aware(*make([], [], num_images=0))) == {}


def random_case(seed: int, num_images: int = 12) -> tuple[GroundTruth, Detections]:
    generator = np.random.default_rng(seed)
    boxes, found = [], []
    for image in range(num_images):
        for _ in range(generator.integers(0, 6)):
            box = [*generator.integers(0, 100, 2).tolist(), *generator.integers(20, 99, 2).tolist()]
            name = NAMES[generator.integers(0, 6)]
            boxes.append((name, box, image, int(generator.random() < 0.1)))
            for _ in range(generator.integers(0, 5)):
                moved = np.array(box) + generator.integers(-9, 10, 4)
                guess = NAMES[generator.integers(0, 6)] if generator.random() < 0.6 else name
                value = round(float(generator.random()), 1)
                found.append((guess, np.maximum(moved, 0).tolist(), value, image))
    return make(boxes, found, num_images)


@pytest.mark.parametrize("seed", range(6))
def test_random_cases_equal_pycocotools_with_ignored_copies(seed: int) -> None:
    truth, found = random_case(seed)
    plain = score(accumulate(truth, found, max_dets=(300,)), truth, found)
    assert tree_aware(truth, found).summary["AP"] >= plain.summary["AP"] > 5


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_copies_equal_loops(monkeypatch, chunk: int) -> None:
    monkeypatch.setattr("vastdet.evaluation.category_tree.CHUNK_BOXES", chunk)
    truth, found = random_case(0)
    seen = set(zip(found.image_index.tolist(), found.category_index.tolist(), strict=True))
    labelled = set(truth.category_index[~truth.is_crowd].tolist())
    expected = [
        (box, k)
        for box, (image, label) in enumerate(
            zip(truth.image_index.tolist(), truth.category_index.tolist(), strict=True)
        )
        for k, name in enumerate(NAMES)
        if NAMES[label] in ABOVE[name] and (image, k) in seen and k in labelled
    ]
    boxes, categories = descendant_copies(truth, found)
    assert list(zip(boxes.tolist(), categories.tolist(), strict=True)) == expected
    assert len(expected) > 10


def test_masks_have_copies_too() -> None:
    def square(x: int, y: int) -> list[list[float]]:
        return [[x, y, x + 50, y, x + 50, y + 50, x, y + 50]]

    rows = [
        {"image_id": 0, "category_id": 3, "score": value, "segmentation": square(*box[:2])}
        for box, value in ((BOX, 0.9), (FAR, 0.5))
    ]
    content = {
        "images": [{"id": 0, "height": 500, "width": 500}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES)],
        "annotations": [
            {"image_id": 0, "category_id": k, "bbox": box, "segmentation": square(*box[:2])}
            for k, box in ((1, BOX), (3, FAR))
        ],
    }
    truth = from_coco(content, SPACE)
    found = from_results(rows, truth, iou_type="segm")
    results = score_protocols(v3det_protocols(truth, iou_type="segm"), truth, found)
    assert ap_of(results["segm"])["parrot"] == pytest.approx(50)
    assert ap_of(results["segm_tree"])["parrot"] == pytest.approx(100)


def test_no_tree(caplog) -> None:
    content = {"images": [], "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    truth = from_coco(content)
    with pytest.raises(ValueError, match="has no category tree, which tree-aware AP needs"):
        descendant_copies(truth, NO_DETECTIONS)
    assert [protocol.key for protocol in v3det_protocols(truth)] == ["bbox"]
    assert "only the plain AP of V3Det can be computed" in caplog.text
