# SPDX-License-Identifier: Apache-2.0
import importlib.util
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tests.models.architectures import set_prediction

from vastdet.detr.export import (
    DetectionNetwork,
    example_images,
    export_onnx,
    export_program,
    largest_differences,
    run_onnx,
)
from vastdet.detr.set_detector import SetDetector

SIZE = (64, 96)


def small_model(cfg: CfgNode, name: str = "DINO") -> SetDetector:
    set_prediction(cfg, name, cfg.MODEL[name])
    cfg.MODEL.PIXEL_STD = [57.375, 57.12, 58.395]
    cfg.TEST.DETECTIONS_PER_IMAGE = 12
    torch.manual_seed(0)
    return build_model(cfg)


def test_the_network_detects_what_the_detector_does(cfg: CfgNode) -> None:
    model = small_model(cfg)
    images = example_images(model, SIZE, 2)
    with torch.no_grad():
        boxes, scores, classes = DetectionNetwork(model)(images)
        expected = [x["instances"] for x in model([{"image": image} for image in images])]
    assert boxes.shape == (2, 12, 4)
    assert boxes.min() >= 0
    assert boxes.amax(dim=(0, 1)).le(torch.tensor([96, 64, 96, 64])).all()
    for i, wanted in enumerate(expected):
        assert len(wanted) == 12
        torch.testing.assert_close(boxes[i], wanted.pred_boxes.tensor, atol=1e-4, rtol=0)
        torch.testing.assert_close(scores[i], wanted.scores)
        assert torch.equal(classes[i], wanted.pred_classes)


def test_differences_are_by_name(cfg: CfgNode) -> None:
    model = small_model(cfg)
    images = example_images(model, SIZE)
    with torch.no_grad():
        boxes, scores, classes = DetectionNetwork(model)(images)
    found = largest_differences(model, images, (boxes + 2, scores, classes - 1))
    assert found == {"boxes": pytest.approx(2, abs=1e-5), "scores": 0, "classes": 1}


def test_detections_after_nms_cannot_be_exported(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="DETA drops detections by NMS"):
        export_program(small_model(cfg, "DETA"), SIZE)


def test_sizes_must_be_positive(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"positive height, width and batch, got \(0, 96\), 1"):
        export_program(small_model(cfg), (0, 96))


def test_onnx_files_need_packages(
    cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"package onnx, .* pip install 'vastdet\[export\]'"):
        export_onnx(small_model(cfg), tmp_path / "model.onnx", SIZE)
    with pytest.raises(ImportError, match="package onnxruntime"):
        run_onnx(tmp_path / "model.onnx", torch.zeros(1, 3, *SIZE))
