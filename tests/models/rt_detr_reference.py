# SPDX-License-Identifier: Apache-2.0
"""Small random RT-DETRs of transformers, and ours with the same weights."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from vastdet.model_zoo.rt_detr_models import rt_detr_transformers_converter

NUM_CLASSES = 5
NUM_QUERIES = 20
SIZES = {"encoder": 32, "decoder": 64, "heads": 4, "encoder_ffn": 48, "decoder_ffn": 80}


def random_weights(model: nn.Module) -> None:
    """Weights so large that every layer shows in the result; those of the start are tiny."""
    for module in model.modules():
        if hasattr(module, "running_var"):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        elif not parameter.any() or bool((parameter == 1).all()):
            nn.init.normal_(parameter, 0.5, 0.2)


def transformers_model(version: int, **options: Any) -> nn.Module:
    """RTDetrForObjectDetection, or V2, with a ResNet-18-vd and random weights."""
    transformers = pytest.importorskip("transformers")
    kind = "V2" if version == 2 else ""
    backbone = transformers.RTDetrResNetConfig(
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    encoder, decoder = SIZES["encoder"], SIZES["decoder"]
    config = getattr(transformers, f"RTDetr{kind}Config")(
        backbone_config=backbone,
        encoder_hidden_dim=encoder,
        encoder_in_channels=[128, 256, 512],
        encoder_ffn_dim=SIZES["encoder_ffn"],
        encoder_attention_heads=SIZES["heads"],
        hidden_expansion=0.5,
        d_model=decoder,
        decoder_in_channels=[encoder] * 3,
        decoder_ffn_dim=SIZES["decoder_ffn"],
        decoder_attention_heads=SIZES["heads"],
        decoder_layers=3,
        num_queries=NUM_QUERIES,
        num_labels=NUM_CLASSES,
        **options,
    )
    model = getattr(transformers, f"RTDetr{kind}ForObjectDetection")(config)
    random_weights(model)
    with torch.no_grad():
        # What an empty slot of the denoising holds: zero in every trained model.
        model.model.denoising_class_embed.weight[-1] = 0
    return model.eval()


def our_model(cfg: CfgNode, theirs: nn.Module, version: int) -> nn.Module:
    """Ours with the weights of `theirs`; further keys may be set in `cfg.MODEL.RT_DETR`."""
    cfg.MODEL.META_ARCHITECTURE = "RTDETR"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_resnet_vd_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "resnet18d"
    cfg.MODEL.TIMM.NORM = "FrozenBN"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res3", "res4", "res5"]
    node = cfg.MODEL.RT_DETR
    node.NUM_CLASSES, node.NUM_QUERIES, node.NUM_DECODER_LAYERS = NUM_CLASSES, NUM_QUERIES, 3
    node.ENCODER_DIM, node.EMBED_DIM = SIZES["encoder"], SIZES["decoder"]
    node.NUM_HEADS, node.EXPANSION = SIZES["heads"], 0.5
    node.ENCODER_FEEDFORWARD_DIM = SIZES["encoder_ffn"]
    node.FEEDFORWARD_DIM = SIZES["decoder_ffn"]
    ours = build_model(cfg).eval()
    converter = rt_detr_transformers_converter(18, version=version)
    weights = converter.to_detectron2(theirs.state_dict())
    absent, surplus = ours.load_state_dict(weights, strict=False)
    assert not surplus
    assert all(name.endswith("num_batches_tracked") for name in absent)
    return ours
