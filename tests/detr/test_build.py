# SPDX-License-Identifier: Apache-2.0
"""The arguments that a member's config keys become."""

from detectron2.config import CfgNode

from vastdet.detr.build import attention_settings, deformable_parts
from vastdet.detr.deformable import deformable_decoder_layer


def test_parts_follow_the_keys_of_the_member(cfg: CfgNode) -> None:
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.PIXEL_STD = [1.0, 2.0, 3.0]
    cfg.TEST.DETECTIONS_PER_IMAGE = 7
    node = cfg.MODEL.DINO
    node.EMBED_DIM, node.NUM_LEVELS, node.NUM_CLASSES = 64, 5, 3
    parts = deformable_parts(cfg, node)
    assert parts["neck"].in_features == ["res3", "res4", "res5"]
    assert [conv.out_channels for conv in parts["neck"].convs] == [64] * 5
    assert (parts["num_classes"], parts["max_detections_per_image"]) == (3, 7)
    assert parts["pixel_std"] == [1.0, 2.0, 3.0]


def test_settings_build_a_layer(cfg: CfgNode) -> None:
    node = cfg.MODEL.DINO
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM, node.DROPOUT = 64, 4, 48, 0.25
    layer = deformable_decoder_layer(**attention_settings(node))
    assert layer.ffn.linear1.weight.shape == (48, 64)
    assert layer.dropout.p == 0.25
    assert layer.self_attn.num_heads == 4
