# SPDX-License-Identifier: Apache-2.0
"""The defaults of the keys that several members have, where members differ."""

import pytest
from detectron2.config import CfgNode

# Member: queries, width of the feed-forward blocks, dropout, weights of class loss and class cost.
PAPERS = {
    "DETR": (100, 2048, 0.1, 1.0, 1.0),
    "CONDITIONAL_DETR": (300, 2048, 0.1, 2.0, 2.0),
    "DAB_DETR": (300, 2048, 0.0, 1.0, 2.0),
    "DN_DETR": (300, 2048, 0.0, 1.0, 2.0),
    "DEFORMABLE_DETR": (300, 1024, 0.1, 2.0, 2.0),
    "DAB_DEFORMABLE_DETR": (300, 2048, 0.0, 1.0, 2.0),
    "DINO": (900, 2048, 0.0, 1.0, 2.0),
    "H_DEFORMABLE_DETR": (300, 2048, 0.0, 2.0, 2.0),
    "RANK_DETR": (300, 2048, 0.0, 2.0, 2.0),
    "RELATION_DETR": (900, 2048, 0.0, 1.0, 2.0),
    "RT_DETR": (300, 1024, 0.0, 1.0, 2.0),
}


@pytest.mark.parametrize("name", PAPERS)
def test_defaults_are_those_of_the_papers(cfg: CfgNode, name: str) -> None:
    node = cfg.MODEL[name]
    loss, cost = node.get("LOSS", node), node.get("MATCHER", node)
    found = node.NUM_QUERIES, node.FEEDFORWARD_DIM, node.DROPOUT
    assert (*found, loss.CLASS_WEIGHT, cost.CLASS_WEIGHT) == PAPERS[name]
    assert (loss.BBOX_WEIGHT, loss.GIOU_WEIGHT) == (cost.BBOX_WEIGHT, cost.GIOU_WEIGHT) == (5, 2)


def test_members_share_no_node(cfg: CfgNode) -> None:
    cfg.MODEL.DINO.DENOISING.NUM_QUERIES = 1
    cfg.MODEL.DINO.LOSS.CLASS_WEIGHT = 9.0
    cfg.MODEL.DINO.IN_FEATURES.append("res6")
    assert cfg.MODEL.RELATION_DETR.DENOISING.NUM_QUERIES == 100
    assert cfg.MODEL.DN_DETR.LOSS.CLASS_WEIGHT == cfg.MODEL.DINO.MATCHER.CLASS_WEIGHT - 1 == 1.0
    assert cfg.MODEL.RELATION_DETR.IN_FEATURES == ["res3", "res4", "res5"]
