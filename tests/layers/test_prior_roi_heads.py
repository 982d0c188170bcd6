# SPDX-License-Identifier: Apache-2.0
"""ROI heads whose sigmoids start at a small probability."""

from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tests.models.architectures import NUM_CLASSES, cascade_rcnn, faster_rcnn_fpn
from tests.models.test_architectures import sample, train_losses
from torch import nn

HEADS = [(faster_rcnn_fpn, "PriorROIHeads"), (cascade_rcnn, "PriorCascadeROIHeads")]


def built(cfg: CfgNode, heads: str, *, sigmoid: bool) -> nn.Module:
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = sigmoid
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.parametrize(("architecture", "heads"), HEADS)
def test_every_class_starts_at_the_prior(
    architecture: Callable[[CfgNode], None], heads: str, cfg: CfgNode
) -> None:
    architecture(cfg)
    detectron2_heads = cfg.MODEL.ROI_HEADS.NAME
    cfg.MODEL.ROI_BOX_HEAD.PRIOR_PROB = 0.02
    model = built(cfg, heads, sigmoid=True)
    predictors = model.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
        scores, _ = predictor(torch.zeros(1, 32))
        torch.testing.assert_close(scores.sigmoid(), torch.full((1, NUM_CLASSES + 1), 0.02))
    own = train_losses(model, [sample()])
    plain = train_losses(built(cfg, detectron2_heads, sigmoid=True), [sample()])
    for name in own:
        if "cls" in name and "rpn" not in name:
            # Three classes at 0.5 each: 3 log 2.
            assert float(plain[name]) == pytest.approx(NUM_CLASSES * 0.693, rel=0.05)
            assert float(own[name]) < float(plain[name])


@pytest.mark.parametrize(("architecture", "heads"), HEADS)
def test_softmaxes_start_as_detectron2s(
    architecture: Callable[[CfgNode], None], heads: str, cfg: CfgNode
) -> None:
    architecture(cfg)
    plain = cfg.MODEL.ROI_HEADS.NAME
    own, theirs = (built(cfg, name, sigmoid=False).state_dict() for name in (heads, plain))
    assert own.keys() == theirs.keys()
    assert all(own[name].equal(tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1])
def test_a_probability_is_expected(prior: float, cfg: CfgNode) -> None:
    faster_rcnn_fpn(cfg)
    cfg.MODEL.ROI_BOX_HEAD.PRIOR_PROB = prior
    with pytest.raises(ValueError, match=r"PRIOR_PROB is .*; expected a probability between 0"):
        built(cfg, "PriorROIHeads", sigmoid=True)
