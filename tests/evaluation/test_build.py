# SPDX-License-Identifier: Apache-2.0
"""Which evaluator a dataset gets, and that Detectron2's Pascal VOC one works beside ours."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from vastdet.evaluation import EVALUATOR_REGISTRY, CocoEvaluator, build_evaluator
from vastdet.evaluation.coco import MAX_CATEGORY_KEYS
from vastdet.vocabulary import CategoryHierarchy, CategorySpace


@pytest.fixture
def metadata():
    name = "evaluation_build_test"
    records: list[dict] = []
    DatasetCatalog.register(name, lambda: records)
    yield MetadataCatalog.get(name).set(thing_classes=["cat", "dog"])
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_type_picks_the_evaluator(cfg: CfgNode, metadata, tmp_path: Path) -> None:
    assert isinstance(build_evaluator(cfg, metadata.name, tmp_path), CocoEvaluator)
    metadata.evaluator_type = "coco"
    cfg.TEST.COCO_ENGINE = "pycocotools"
    cfg.TEST.MAX_DETS = [1, 300]
    cfg.TEST.CONFUSION_SCORE_THRESH = 0.7
    evaluator = build_evaluator(cfg, metadata.name, str(tmp_path))
    assert evaluator.engine == "pycocotools"
    assert {"AR1", "AR300"} < evaluator.evaluate()["bbox"].keys()
    assert evaluator.options.confusion_score == 0.7
    assert evaluator.options.plots
    assert evaluator.output_folder == tmp_path


def test_v3det_gets_both_metrics(cfg: CfgNode, metadata, tmp_path, caplog) -> None:
    metadata.evaluator_type = "v3det"
    metadata.category_space = CategorySpace(
        names=("cat", "dog"),
        dataset_ids=(1, 2),
        hierarchy=CategoryHierarchy.from_ids([("cat", "dog")], category_nodes=["cat", "dog"]),
    )
    cfg.TEST.PLOTS = "never"
    with caplog.at_level("INFO"):
        result = build_evaluator(cfg, metadata.name, tmp_path).evaluate()
    assert list(result) == ["bbox", "bbox_tree"]
    assert {"AP", "AR300", "ARC100"} < result["bbox_tree"].keys()
    assert "V3Det tree-aware box AP (bbox_tree): " in caplog.text
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["bbox"]["title"] == "V3Det plain box AP"
    assert "descendant of the label is ignored" in stored["bbox_tree"]["description"]
    assert "descendant of the label is ignored" in stored["note"]
    assert (tmp_path / "per_category.csv").is_file()
    assert (tmp_path / "per_category_bbox_tree.csv").is_file()


def test_lvis_gets_both_metrics(cfg: CfgNode, metadata) -> None:
    metadata.evaluator_type = "lvis"
    records = DatasetCatalog.get(metadata.name)
    records.append({"image_id": 1, "neg_category_ids": [1], "not_exhaustive_category_ids": []})
    result = build_evaluator(cfg, metadata.name, None).evaluate()
    assert list(result) == ["bbox", "bbox_fixed"]
    assert "AR10000" in result["bbox_fixed"]


def test_lvis_without_its_lists_fails_before_the_model_ran(cfg: CfgNode, metadata) -> None:
    metadata.evaluator_type = "lvis"
    evaluator = build_evaluator(cfg, metadata.name, None)
    with pytest.raises(ValueError, match="has no neg_category_ids"):
        evaluator.process([{"image_id": 1}], [{"instances": Instances((9, 9))}])


def test_unknown_type(cfg: CfgNode, metadata) -> None:
    metadata.evaluator_type = "sem_seg"
    with pytest.raises(ValueError, match=r"no evaluator for the evaluator_type 'sem_seg'.*coco"):
        build_evaluator(cfg, metadata.name, None)


def test_a_registered_evaluator_is_found(cfg: CfgNode, metadata) -> None:
    def counting(cfg, dataset_name, output_folder):
        return ("counting", dataset_name, output_folder)

    EVALUATOR_REGISTRY.register(counting)
    metadata.evaluator_type = "counting"
    try:
        assert build_evaluator(cfg, metadata.name, None) == ("counting", metadata.name, None)
    finally:
        del EVALUATOR_REGISTRY._obj_map["counting"]


def test_many_categories_leave_out_their_keys(cfg: CfgNode, metadata) -> None:
    del metadata.thing_classes
    metadata.thing_classes = [f"thing {k}" for k in range(MAX_CATEGORY_KEYS + 1)]
    result = build_evaluator(cfg, metadata.name, None).evaluate()["bbox"]
    assert not [key for key in result if key.startswith("AP-")]
    assert "AP50" in result


XML = """<annotation><object><name>cat</name><pose>Left</pose><truncated>0</truncated>
<difficult>0</difficult><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>50</xmax><ymax>60</ymax>
</bndbox></object></annotation>"""


def test_pascal_voc(cfg: CfgNode, metadata, tmp_path: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "Annotations/000001.xml").write_text(XML)
    (tmp_path / "ImageSets/Main/test.txt").write_text("000001\n")
    metadata.set(evaluator_type="pascal_voc", dirname=str(tmp_path), split="test", year=2007)
    evaluator = build_evaluator(cfg, metadata.name, None)
    assert isinstance(evaluator, PascalVOCDetectionEvaluator)
    found = Instances((100, 100))
    found.pred_boxes = Boxes(torch.tensor([[10.0, 20.0, 50.0, 60.0]]))
    found.scores = torch.tensor([0.9])
    found.pred_classes = torch.tensor([0])
    evaluator.reset()
    evaluator.process([{"image_id": "000001"}], [{"instances": found}])
    # The dog has no ground truth, which Detectron2 counts as 0.
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(50)
