# SPDX-License-Identifier: Apache-2.0
"""Fused networks compute what the others do, without norms; what was fused stays as it was."""

import copy

import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from timm.layers import freeze_batch_norm_2d
from torch import nn

from vastdet.layers.conv_norm import ConvNorm
from vastdet.layers.fusion import NORMS, fused


def with_statistics(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def norms_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module).__name__ in NORMS]


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_and_its_norm(bias: bool) -> None:
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5)))
    before = copy.deepcopy(model.state_dict())
    one, images = fused(model), torch.randn(2, 3, 6, 7)
    assert not norms_of(one)
    # Measured: 5e-7.
    torch.testing.assert_close(one(images), model(images), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(p.requires_grad for p in one.parameters())
    block = with_statistics(ConvNorm(3, 5, 3, 2))
    holder = nn.ModuleList([block])
    (conv,) = fused(holder)
    assert isinstance(conv, nn.Conv2d)
    torch.testing.assert_close(conv(images), block(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet18d", "test_resnet"])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_timm_s_resnets(name: str, is_frozen: bool) -> None:
    model = with_statistics(timm.create_model(name, features_only=True, out_indices=(2, 3)))
    if is_frozen:
        model = freeze_batch_norm_2d(model)
    one, images = fused(model), torch.randn(1, 3, 64, 64)
    assert norms_of(model)
    assert not norms_of(one)
    with torch.no_grad():
        for found, expected in zip(one(images), model(images), strict=True):
            # Measured: 6e-7 of the largest value.
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_detectron2_s_resnet(norm: str) -> None:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8, 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    model = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    for name, buffer in model.named_buffers():
        if "running_mean" in name:
            nn.init.normal_(buffer, 0.0, 0.1)
        if "running_var" in name:
            nn.init.uniform_(buffer, 0.8, 1.2)
    one, images = fused(model), torch.randn(1, 3, 64, 64)
    assert len(norms_of(model)) == 43
    assert not norms_of(one)
    with torch.no_grad():
        found, expected = one(images)["res4"], model(images)["res4"]
    # Measured: 3e-7 of the largest value.
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_norm_before_its_convolution_stays() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 3, 1)
            self.norm2 = nn.BatchNorm2d(3)
            self.conv2 = nn.Conv2d(3, 3, 1)

    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), Before())
    assert norms_of(fused(model)) == ["0", "2.norm2"]
