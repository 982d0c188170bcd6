# SPDX-License-Identifier: Apache-2.0
"""The evaluator as the trainer uses it: datasets, processes, keys, files, errors."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage

from vastdet.evaluation import build_evaluator, results_file
from vastdet.evaluation.coco import merge_processes, plots_are_due
from vastdet.evaluation.detections import Detections, from_instances, to_coco
from vastdet.evaluation.protocols import score_protocols
from vastdet.evaluation.results_file import read_results

NAMES = ["cat", "dog", "owl"]


def instances(boxes: list, scores: list, classes: list, masks: np.ndarray | None = None):
    result = Instances((100, 100))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if masks is not None:
        result.pred_masks = torch.from_numpy(masks)
    return result


def random_dataset(num_images: int = 12, seed: int = 0) -> tuple[list[dict], list[Instances]]:
    generator = np.random.default_rng(seed)
    records, outputs = [], []
    for image in range(num_images):
        count = int(generator.integers(0, 5))
        corners = generator.uniform(0, 50, (count, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(5, 50, (count, 2))], 1)
        classes = generator.integers(0, 2, count)  # nothing is ever an owl
        annotations = [
            {
                "bbox": box.tolist(),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": int(category),
                "iscrowd": int(generator.random() < 0.1),
            }
            for box, category in zip(boxes, classes, strict=True)
        ]
        records.append(
            {
                "file_name": f"{image}.png",
                "image_id": 7 * image,
                "height": 100,
                "width": 100,
                "annotations": annotations,
            }
        )
        found = np.concatenate([boxes + generator.normal(0, 3, boxes.shape), boxes + 20])
        labels = generator.integers(0, 3, 2 * count)
        labels[:count] = np.where(generator.random(count) < 0.8, classes, labels[:count])
        scores = generator.random(2 * count).round(1)
        outputs.append(instances(found.tolist(), scores.tolist(), labels.tolist()))
    return records, outputs


@pytest.fixture
def dataset():
    """Registers dataset dicts under a name of their own and takes them back afterwards."""
    names = []

    def register(records: list[dict], **metadata) -> str:
        name = f"evaluation_test_{len(names)}"
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(thing_classes=NAMES, evaluator_type="coco", **metadata)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(evaluator, records: list[dict], outputs: list[Instances]) -> dict:
    evaluator.reset()
    for record, output in zip(records, outputs, strict=True):
        evaluator.process([record], [{"instances": output}])
    return evaluator.evaluate()


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_equals_detectron2(cfg: CfgNode, dataset, tmp_path: Path, engine: str) -> None:
    records, outputs = random_dataset()
    name = dataset(records)
    cfg.TEST.COCO_ENGINE = engine
    cfg.TEST.PLOTS = "never"
    ours = run(build_evaluator(cfg, name, tmp_path / "ours"), records, outputs)["bbox"]
    theirs = COCOEvaluator(name, output_dir=str(tmp_path / "theirs"))
    reference = run(theirs, records, outputs)["bbox"]
    for key, value in reference.items():
        assert ours[key] == pytest.approx(value, abs=1e-9, nan_ok=True), key
    assert math.isnan(ours["AP-owl"])
    assert ours["AP-cat"] > 10
    assert {"AR1", "AR10", "AR100", "ARs", "ARm", "ARl"} <= set(ours)


def test_no_detections_score_zero_not_nan(cfg: CfgNode, dataset, tmp_path: Path, caplog) -> None:
    records, _ = random_dataset()
    evaluator = build_evaluator(cfg, dataset(records), tmp_path)
    result = run(evaluator, records, [instances([], [], []) for _ in records])["bbox"]
    assert result["AP"] == 0
    assert result["AR100"] == 0
    assert math.isnan(result["AP-owl"])
    assert "detected nothing" in caplog.text
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []


def test_nothing_processed_counts_every_image(cfg: CfgNode, dataset, caplog) -> None:
    records, _ = random_dataset()
    evaluator = build_evaluator(cfg, dataset(records), None)
    evaluator.reset()
    assert evaluator.evaluate()["bbox"]["AP"] == 0
    assert "12 of 12 images" in caplog.text


def test_dataset_without_any_box_is_nan(cfg: CfgNode, dataset, tmp_path: Path) -> None:
    records, outputs = random_dataset()
    empty = [{**record, "annotations": []} for record in records]
    result = run(build_evaluator(cfg, dataset(empty), tmp_path), empty, outputs)["bbox"]
    assert all(math.isnan(value) for value in result.values())
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["bbox"]["AP"] is None
    assert stored["num_detections"] == sum(len(output) for output in outputs)


def test_dataset_without_images(cfg: CfgNode, dataset, tmp_path: Path) -> None:
    result = run(build_evaluator(cfg, dataset([]), tmp_path), [], [])["bbox"]
    assert math.isnan(result["AP"])


def test_reset_forgets(cfg: CfgNode, dataset) -> None:
    records, outputs = random_dataset()
    evaluator = build_evaluator(cfg, dataset(records), None)
    first = run(evaluator, records, outputs)["bbox"]
    assert run(evaluator, records, outputs)["bbox"] == pytest.approx(first, nan_ok=True)


def test_image_seen_twice_counts_once(cfg: CfgNode, dataset) -> None:
    records, outputs = random_dataset()
    evaluator = build_evaluator(cfg, dataset(records), None)
    expected = run(evaluator, records, outputs)["bbox"]
    again = run(evaluator, records * 2, outputs * 2)["bbox"]
    assert again == pytest.approx(expected, nan_ok=True)


def test_processes_merge_uneven_and_overlapping_parts(cfg: CfgNode, dataset) -> None:
    records, outputs = random_dataset()
    evaluator = build_evaluator(cfg, dataset(records), None)
    expected = run(evaluator, records, outputs)["bbox"]
    gathered = []
    for share in (range(9), range(0), range(7, 12)):  # 7 and 8 are seen twice, one sees nothing
        parts = [from_instances(outputs[i], i) for i in share]
        empty = from_instances(instances([], [], []), 0)
        gathered.append((np.array(share, dtype=np.int64), Detections.concatenate([*parts, empty])))
    merged = merge_processes(gathered)
    assert len(merged) == sum(len(output) for output in outputs)
    scores = score_protocols(evaluator.protocols("bbox"), evaluator.ground_truth, merged)
    summary = scores["bbox"].summary
    assert summary == pytest.approx({key: expected[key] for key in summary}, nan_ok=True)


def test_json_dataset_converts_category_ids(cfg: CfgNode, tmp_path: Path) -> None:
    content = {
        "images": [{"id": 5, "height": 100, "width": 100, "file_name": "5.png"}],
        "categories": [{"id": 90, "name": "owl"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 0, "image_id": 5, "category_id": 90, "bbox": [10, 10, 20, 30], "area": 600}
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    name = "evaluation_json_test"
    metadata = MetadataCatalog.get(name).set(json_file=str(tmp_path / "truth.json"))
    output = instances([[10, 10, 30, 40]], [0.9], [1])
    evaluator = build_evaluator(cfg, name, tmp_path / "out")
    result = run(evaluator, [{"image_id": 5}], [output])["bbox"]
    MetadataCatalog.remove(metadata.name)
    # 90 is the second id in ascending order. Its annotation has id 0, which pycocotools by itself
    # takes for "unmatched".
    assert result["AP"] == pytest.approx(100)
    [row] = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert row["category_id"] == 90
    assert row["image_id"] == 5
    assert row["bbox"] == [10, 10, 20, 30]


def test_masks_are_scored_when_both_sides_have_them(cfg: CfgNode, dataset, tmp_path: Path) -> None:
    square = [[10.0, 10.0, 40.0, 10.0, 40.0, 40.0, 10.0, 40.0]]
    box = [10.0, 10.0, 40.0, 40.0]
    annotation = {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "segmentation": square,
    }
    records = [{"image_id": 1, "height": 100, "width": 100, "annotations": [annotation]}]
    masks = np.zeros((1, 100, 100), dtype=bool)
    masks[0, 10:40, 10:28] = True  # 60 % of the square
    name = dataset(records)
    output = instances([box], [0.5], [0], masks)
    result = run(build_evaluator(cfg, name, tmp_path), records, [output])
    assert result["bbox"]["AP"] == pytest.approx(100)
    assert result["segm"]["AP50"] == pytest.approx(100)
    assert result["segm"]["AP"] == pytest.approx(30)  # found at 0.50, 0.55 and 0.60
    assert (tmp_path / "per_category_segm.csv").is_file()
    boxes_only = run(build_evaluator(cfg, name, None), records, [instances([box], [0.5], [0])])
    assert set(boxes_only) == {"bbox"}


def test_files(cfg: CfgNode, dataset, tmp_path: Path) -> None:
    records, outputs = random_dataset()
    result = run(build_evaluator(cfg, dataset(records), tmp_path), records, outputs)["bbox"]
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["bbox"]["AP"] == pytest.approx(result["AP"])
    with (tmp_path / "per_category.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == NAMES
    assert float(rows[0]["ap"]) == pytest.approx(result["AP-cat"])
    assert rows[2]["ap"] == ""
    counts = [
        sum(a["category_id"] == 0 and not a["iscrowd"] for a in record["annotations"])
        for record in records
    ]
    assert int(rows[0]["num_boxes"]) == sum(counts)
    assert int(rows[0]["num_images"]) == sum(count > 0 for count in counts)
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {
        "precision_recall.png",
        "confusion_matrix.png",
        "ap_by_size.png",
        "ap_by_frequency.png",
    }
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("choice", "iteration", "due"),
    [
        ("final", None, True),
        ("final", 50, False),
        ("final", 99, True),
        ("never", None, False),
        ("always", 50, True),
    ],
)
def test_when_pictures_are_drawn(cfg: CfgNode, choice: str, iteration: int | None, due) -> None:
    cfg.TEST.PLOTS = choice
    cfg.SOLVER.MAX_ITER = 100
    if iteration is None:
        assert plots_are_due(cfg) is due
        return
    with EventStorage(iteration):
        assert plots_are_due(cfg) is due


def test_unknown_plots_value(cfg: CfgNode) -> None:
    cfg.TEST.PLOTS = "sometimes"
    with pytest.raises(ValueError, match="'sometimes', expected 'never'"):
        plots_are_due(cfg)


@pytest.mark.parametrize(
    ("image_id", "output", "message"),
    [
        (999, instances([], [], []), "image id 999 is not in the ground truth"),
        (7, instances([[0, 0, 9, 9]], [0.5], [3]), r"class 3 for image 7.*3 classes"),
        (7, instances([[0, 0, 9, 9]], [0.5], [-1]), "class -1 for image 7"),
        (7, instances([[0, 0, math.nan, 9]], [0.5], [0]), "not finite for image 7"),
        (7, instances([[0, 0, 9, 9]], [math.inf], [0]), "not finite for image 7"),
    ],
)
def test_wrong_predictions(cfg: CfgNode, dataset, image_id, output, message: str) -> None:
    evaluator = build_evaluator(cfg, dataset(random_dataset()[0]), None)
    with pytest.raises(ValueError, match=message):
        evaluator.process([{"image_id": image_id}], [{"instances": output}])


def test_output_without_instances(cfg: CfgNode, dataset) -> None:
    evaluator = build_evaluator(cfg, dataset(random_dataset()[0]), None)
    with pytest.raises(ValueError, match="expected 'instances'"):
        evaluator.process([{"image_id": 7}], [{"proposals": None}])


def test_many_detections_are_written_as_arrays(
    cfg: CfgNode, dataset, tmp_path: Path, monkeypatch
) -> None:
    records, outputs = random_dataset()
    name = dataset(records)
    cfg.TEST.PLOTS = "never"
    evaluator = build_evaluator(cfg, name, tmp_path)
    run(evaluator, records, outputs)
    rows = json.loads((tmp_path / "coco_instances_results.json").read_text())
    monkeypatch.setattr(results_file, "MAX_JSON_DETECTIONS", len(rows) - 1)
    run(evaluator, records, outputs)
    assert not (tmp_path / "coco_instances_results.json").exists()
    found = read_results(tmp_path / "instances_results.npz", evaluator.ground_truth)
    assert to_coco(found, evaluator.ground_truth) == rows
    monkeypatch.setattr(results_file, "JSON_BLOCK", 7)
    monkeypatch.setattr(results_file, "MAX_JSON_DETECTIONS", len(rows))
    run(evaluator, records, outputs)
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == rows
    assert not (tmp_path / "instances_results.npz").exists()


def test_test_set_without_annotations_writes_results_only(cfg: CfgNode, tmp_path: Path) -> None:
    content = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    name = "evaluation_unannotated_test"
    MetadataCatalog.get(name).set(json_file=str(tmp_path / "truth.json"))
    evaluator = build_evaluator(cfg, name, tmp_path / "out")
    result = run(evaluator, [{"image_id": 1}], [instances([[0, 0, 9, 9]], [0.5], [0])])
    MetadataCatalog.remove(name)
    assert result == {}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["coco_instances_results.json"]
