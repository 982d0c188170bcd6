# SPDX-License-Identifier: Apache-2.0
"""DINO compiled, exported, and as ONNX: the same detections as without."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tests.models.architectures import set_prediction
from tests.models.comparison import largest_difference
from torch import nn

from vastdet.detr.export import (
    OUTPUT_NAMES,
    DetectionNetwork,
    example_images,
    export_onnx,
    export_program,
    largest_differences,
    run_onnx,
)
from vastdet.models.dino import DINO

SIZE = (96, 128)


@pytest.fixture
def model(cfg: CfgNode) -> DINO:
    """A small model whose every layer shows in the result."""
    set_prediction(cfg, "DINO", cfg.MODEL.DINO)
    cfg.MODEL.PIXEL_STD = [57.375, 57.12, 58.395]
    cfg.TEST.DETECTIONS_PER_IMAGE = 30
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.startswith("backbone."):
            nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
    return model


@pytest.mark.slow
@torch.no_grad()
def test_export_equals_eager(model: DINO, tmp_path: Path) -> None:
    program = export_program(model, SIZE, batch_size=2)
    operators = {str(node.target) for node in program.graph.nodes}
    assert "vastdet.ms_deform_attn.default" in operators
    torch.export.save(program, tmp_path / "dino.pt2")
    images = example_images(model, SIZE, 2).flip(-1)  # not those of the export
    outputs = torch.export.load(tmp_path / "dino.pt2").module()(images)
    # Measured: 0 for boxes, scores and classes.
    found = largest_differences(model, images, outputs)
    print(found)  # shown by pytest -s
    assert found["boxes"] < 1e-3
    assert found["scores"] < 1e-6
    assert found["classes"] == 0


@pytest.mark.slow
@torch.no_grad()
def test_compiled_equals_eager_at_every_size(model: DINO) -> None:
    network = DetectionNetwork(model)
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=True)
    for size in (SIZE, (128, 160), (83, 105)):
        images = example_images(model, size)
        for one, other in zip(network(images), compiled(images), strict=True):
            assert largest_difference(one, other) < 1e-5  # measured: 0


@pytest.mark.slow
def test_onnx_equals_eager(model: DINO, tmp_path: Path) -> None:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    onnx = pytest.importorskip("onnx")
    export_onnx(model, tmp_path / "dino.onnx", SIZE)
    images = example_images(model, SIZE).flip(-1)
    found = largest_differences(model, images, run_onnx(tmp_path / "dino.onnx", images))
    # Measured: boxes 1.2e-4 pixels, scores 1e-7.
    print(found)  # shown by pytest -s
    assert found["boxes"] < 1e-3
    assert found["scores"] < 1e-6
    assert found["classes"] == 0
    graph = onnx.load(tmp_path / "dino.onnx").graph
    assert {node.domain for node in graph.node} == {""}, "operators beyond the standard"
    assert [x.name for x in graph.input] == ["images"]
    assert [x.name for x in graph.output] == list(OUTPUT_NAMES)
