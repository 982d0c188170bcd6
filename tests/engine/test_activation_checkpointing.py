# SPDX-License-Identifier: Apache-2.0
"""Recomputed activations give the same gradients, statistics and names."""

import copy

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import nn

from vastdet.engine.activation_checkpointing import checkpoint_activations


class Toy(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.backbone(images)
        features = features.values() if isinstance(features, dict) else features
        return torch.stack([level.square().mean() for level in features]).sum()


def detectron2_backbone(cfg: CfgNode) -> nn.Module:
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    return build_backbone(cfg)


NAMES = ["detectron2", "resnet18", "mobilenetv3_small_050", "convnext_atto", "swin_s3_tiny_224"]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_statistics_and_names_stay(name: str, cfg: CfgNode) -> None:
    torch.manual_seed(0)
    size = 64
    if name == "detectron2":
        backbone = detectron2_backbone(cfg)
    elif name.startswith("swin"):
        # Stochastic depth draws random numbers: both forward passes must draw the same.
        options = {"embed_dim": 12, "num_heads": (1, 1, 2, 2), "drop_path_rate": 0.2}
        backbone = timm.create_model(name, features_only=True, img_size=size, **options)
    else:
        backbone = timm.create_model(name, features_only=True)
    plain = Toy(backbone).train()
    model = copy.deepcopy(plain)
    assert checkpoint_activations(model) > 3
    assert list(model.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, size, size)
    for net in (plain, model):
        torch.manual_seed(1)
        net(images).backward()
    for (key, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        if a.grad is None:
            assert b.grad is None, key
        else:
            assert torch.equal(a.grad, b.grad), key
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    # A copy computes with its own weights.
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin.eval()(images).item() == plain.eval()(images).item()


def test_memory_is_saved(cfg: CfgNode) -> None:
    def kept(model: nn.Module) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(torch.randn(1, 3, 64, 64))
        return total

    model = Toy(detectron2_backbone(cfg)).train()
    plain = kept(model)
    checkpoint_activations(model)
    assert kept(model) < 0.5 * plain


@pytest.mark.parametrize("model", [nn.Linear(1, 1), Toy(nn.Conv2d(3, 4, 3))])
def test_nothing_to_recompute_is_an_error(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="ACTIVATION_CHECKPOINTING"):
        checkpoint_activations(model)
