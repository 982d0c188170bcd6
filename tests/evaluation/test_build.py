# SPDX-License-Identifier: Apache-2.0
"""Which evaluator a dataset gets, and that Detectron2's Pascal VOC one works beside ours."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from vastdet.evaluation import EVALUATOR_REGISTRY, CocoEvaluator, build_evaluator
from vastdet.evaluation.build import NOTES
from vastdet.evaluation.coco import MAX_CATEGORY_KEYS


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
    assert (evaluator.engine, evaluator.max_dets) == ("pycocotools", (1, 300))
    assert evaluator.options.confusion_score == 0.7
    assert evaluator.options.plots
    assert evaluator.output_folder == tmp_path


@pytest.mark.parametrize("kind", ["lvis", "v3det"])
def test_other_metrics_are_announced(cfg: CfgNode, metadata, tmp_path, caplog, kind: str) -> None:
    metadata.evaluator_type = kind
    evaluator = build_evaluator(cfg, metadata.name, tmp_path)
    evaluator.evaluate()
    assert NOTES[kind] in caplog.text
    assert NOTES[kind] in (tmp_path / "metrics.json").read_text()


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
