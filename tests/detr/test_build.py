# SPDX-License-Identifier: Apache-2.0
"""The arguments and parts that a member's config keys become."""

import pytest
import torch
from detectron2.config import CfgNode

from vastdet.detr.build import (
    class_loss,
    contrastive_denoising,
    deformable_parts,
    deformable_settings,
    dense_parts,
    dense_settings,
    dn_denoising,
    focal_parts,
    levels_to_tokens,
)
from vastdet.detr.deformable import deformable_decoder_layer
from vastdet.detr.dense import dense_decoder_layer
from vastdet.detr.losses import FocalLoss, SigmoidCrossEntropyLoss
from vastdet.detr.matcher import focal_cost


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

    dense = cfg.MODEL.DAB_DETR
    dense.IN_FEATURE, dense.EMBED_DIM = "res4", 48
    neck = dense_parts(cfg, dense)["neck"]
    assert (neck.in_feature, neck.conv.in_channels, neck.conv.out_channels) == ("res4", 1024, 48)


def test_settings_build_a_layer(cfg: CfgNode) -> None:
    node = cfg.MODEL.DINO
    node.EMBED_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM, node.DROPOUT = 64, 4, 48, 0.25
    for layer in (
        deformable_decoder_layer(**deformable_settings(node)),
        dense_decoder_layer(**dense_settings(node)),
    ):
        assert layer.ffn.linear1.weight.shape == (48, 64)
        assert layer.dropout.p == 0.25
        assert layer.self_attn.num_heads == 4


def test_levels_have_embeddings(cfg: CfgNode) -> None:
    node = cfg.MODEL.DINO
    node.EMBED_DIM, node.NUM_LEVELS = 64, 5
    made = levels_to_tokens(node, temperature=20.0, offset=0.25)
    assert made.level_embedding.shape == (5, 64)
    assert (made.position_encoding.temperature, made.position_encoding.offset) == (20.0, 0.25)


def test_denoising_follows_its_node(cfg: CfgNode) -> None:
    node = cfg.MODEL.DINO
    node.DENOISING.NUM_QUERIES, node.DENOISING.LABEL_NOISE = 12, 0.5
    made = contrastive_denoising(node, eps=0.01)
    assert made is not None
    assert (made.num_queries, made.flip_probability, made.eps) == (12, 0.25, 0.01)
    node.DENOISING.NUM_QUERIES = 0
    assert contrastive_denoising(node, eps=0.01) is None
    cfg.MODEL.DN_DETR.DENOISING.NUM_GROUPS = 3
    assert dn_denoising(cfg.MODEL.DN_DETR, eps=0.01).num_groups == 3


@pytest.mark.parametrize("alpha", [0.25, 0.4])
def test_loss_and_cost_are_told_of_the_focal_settings(cfg: CfgNode, alpha: float) -> None:
    node = cfg.MODEL.DINO
    node.LOSS.CLASS_WEIGHT, node.MATCHER.CLASS_WEIGHT, node.LOSS.FOCAL_ALPHA = 3.0, 4.0, alpha
    parts = focal_parts(node.LOSS, node.MATCHER, giou_eps=1e-6)
    assert (parts["weights"].classes, parts["assigner"].class_weight) == (3.0, 4.0)
    assert parts["giou_eps"] == parts["assigner"].giou_eps == 1e-6
    assert parts["class_loss"].alpha == alpha
    logits, labels = torch.tensor([[0.3, -1.0]]), torch.tensor([[1]])
    expected = focal_cost(logits, labels, alpha=alpha)
    assert torch.equal(parts["assigner"].class_cost(logits, labels), expected)


def test_class_loss_is_chosen_and_the_cost_stays_focal(cfg: CfgNode) -> None:
    node = cfg.MODEL.DINO
    focal = class_loss(node.LOSS)
    assert isinstance(focal, FocalLoss)
    assert (focal.alpha, focal.gamma) == (0.25, 2.0)
    node.LOSS.CLASS_LOSS = "cross_entropy"
    parts = focal_parts(node.LOSS, node.MATCHER)
    assert isinstance(parts["class_loss"], SigmoidCrossEntropyLoss)
    assert parts["assigner"].class_cost.func is focal_cost
    node.LOSS.CLASS_LOSS = "hinge"
    with pytest.raises(ValueError, match="CLASS_LOSS is 'hinge'; expected 'focal' or 'cross_ent"):
        focal_parts(node.LOSS, node.MATCHER)
