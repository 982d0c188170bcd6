# SPDX-License-Identifier: Apache-2.0
"""Every architecture trains and detects on a Swin in place of its backbone."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tests.models.architectures import ARCHITECTURES, Architecture
from tests.models.test_architectures import sample

SWINS = {
    "build_timm_backbone": "build_swin_backbone",
    "build_timm_fpn_backbone": "build_swin_fpn_backbone",
    "build_timm_retinanet_fpn_backbone": "build_retinanet_swin_fpn_backbone",
}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_trains_and_detects_on_a_swin(architecture: Architecture, cfg: CfgNode) -> None:
    cfg.MODEL.WEIGHTS = ""
    architecture.configure(cfg)
    if cfg.MODEL.BACKBONE.NAME not in SWINS:
        pytest.skip(f"{cfg.MODEL.BACKBONE.NAME} is a part of this architecture")
    name = cfg.MODEL.BACKBONE.NAME = SWINS[cfg.MODEL.BACKBONE.NAME]
    swin = cfg.MODEL.SWIN
    swin.EMBED_DIM, swin.WINDOW_SIZE, swin.DROP_PATH_RATE = 8, 3, 0.0
    swin.DEPTHS, swin.NUM_HEADS = [1, 2, 1, 1], [1, 1, 2, 2]
    swin.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES if "fpn" in name else cfg.MODEL.TIMM.OUT_FEATURES
    torch.manual_seed(0)
    model = build_model(cfg)
    with EventStorage():
        losses = model([sample(), sample(size=(96, 120), seed=1)])
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    backbone = dict(model.backbone.named_parameters())
    assert any("relative_position_bias_table" in n for n in backbone)
    trunk = {n: p for n, p in backbone.items() if ".attn." in n or "patch_embed" in n}
    assert all(p.grad is not None and bool(p.grad.any()) for p in trunk.values())
    model.eval()
    (found,) = model([sample()])
    assert found["instances"].image_size == (96, 96)
