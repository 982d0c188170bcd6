# SPDX-License-Identifier: Apache-2.0
"""How the class logits of Detectron2's ROI heads are observed, where their losses are sigmoids."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import Tensor

from vastdet.layers.observed_logits import observable, observed


@observable.register
@contextmanager
def observable_box_predictor(predictor: FastRCNNOutputLayers) -> Iterator[None]:
    """Within, logits pass `observed` on their way into `sigmoid_cross_entropy_loss`.

    The proposals of all images are one list there, and are shown as those of a single image. With
    softmaxes, the default, nothing is shown.
    """
    loss = predictor.sigmoid_cross_entropy_loss

    def observed_loss(pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        # Detectron2 keeps a logit of background, the last, out of the loss; its label is K.
        num_classes = pred_class_logits.shape[1] - 1
        logits, background = pred_class_logits.split([num_classes, 1], dim=1)
        labels = torch.where(gt_classes < num_classes, gt_classes, -1)
        (logits,) = observed(logits[None], labels[None])
        return loss(torch.cat([logits, background], dim=1), gt_classes)

    predictor.sigmoid_cross_entropy_loss = observed_loss
    try:
        yield
    finally:
        del predictor.sigmoid_cross_entropy_loss
