# SPDX-License-Identifier: Apache-2.0
"""The dilated ResNet beside torchvision's with the same random weights."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import Tensor

from vastdet.model_zoo.torchvision_models import resnet

torchvision = pytest.importorskip("torchvision")


@pytest.fixture
def dc5_cfg(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.BACKBONE.NAME = "build_resnet_dc5_backbone"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    return cfg


@torch.no_grad()
def stages_of_torchvision(images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights, and the maps of the last two stages."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    x = model.maxpool(model.bn1(model.conv1(images)).relu())
    res4 = model.layer3(model.layer2(model.layer1(x)))
    return model.state_dict(), {"res4": res4, "res5": model.layer4(res4)}


def test_equals_torchvision_where_detectron2_does_not(dc5_cfg: CfgNode) -> None:
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    state_dict, expected = stages_of_torchvision(images)
    scale = expected["res5"].abs().max()
    differences = {}
    for name in ("build_resnet_dc5_backbone", "build_resnet_backbone"):
        dc5_cfg.MODEL.BACKBONE.NAME = name
        model = build_backbone(dc5_cfg).eval()
        model.load_state_dict(resnet(50).to_detectron2(state_dict))
        with torch.no_grad():
            maps = model(images)
        assert maps["res5"].shape == (1, 2048, 6, 8)
        assert model.output_shape()["res5"].stride == 16
        torch.testing.assert_close(maps["res4"], expected["res4"], rtol=1e-4, atol=1e-4)
        differences[name] = float((maps["res5"] - expected["res5"]).abs().max() / scale)
    print(differences)  # shown by pytest -s
    assert differences["build_resnet_dc5_backbone"] < 1e-5
    assert differences["build_resnet_backbone"] > 0.1


def test_dilation_must_be_asked_for(dc5_cfg: CfgNode) -> None:
    dc5_cfg.MODEL.RESNETS.RES5_DILATION = 1
    with pytest.raises(ValueError, match="RES5_DILATION is 1; expected 2"):
        build_backbone(dc5_cfg)
