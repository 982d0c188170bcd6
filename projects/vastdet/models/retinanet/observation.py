# SPDX-License-Identifier: Apache-2.0
"""How the class logits of Detectron2's RetinaNet are observed, which knows of no observers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.modeling import RetinaNet
from torch import Tensor

from vastdet.layers.observed_logits import observable, observed


@observable.register
@contextmanager
def observable_retinanet(model: RetinaNet) -> Iterator[None]:
    """Within, the logits of each level pass `observed` on their way into the losses."""
    losses = model.losses

    def observed_losses(
        anchors: Any, pred_logits: list[Tensor], gt_labels: list[Tensor], *others: Any
    ) -> dict[str, Tensor]:
        # Detectron2's labels: -1 does not count, K is background.
        labels = torch.stack(gt_labels)
        sizes = [logits.shape[1] for logits in pred_logits]
        levels = [
            observed(logits, torch.where(level < model.num_classes, level, -1), level >= 0)
            for logits, level in zip(pred_logits, labels.split(sizes, dim=1), strict=True)
        ]
        return losses(anchors, levels, gt_labels, *others)

    model.losses = observed_losses
    try:
        yield
    finally:
        del model.losses
