# SPDX-License-Identifier: Apache-2.0
"""The second stage of CenterNet2: a cascade that classifies a box given that it is an object.

B images, S stages, N proposals of an image, K classes.
"""

from typing import Any

import torch
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor

from vastdet.layers.prior_roi_heads import PriorCascadeROIHeads


def joint_scores(objectness: Tensor, class_probabilities: Tensor) -> Tensor:
    """The geometric mean of "is an object" and "is of this class if it is one".

    Section 3 multiplies the two; the root changes no order and keeps scores in the usual range.

    Args:
        objectness: (N,) in [0, 1].
        class_probabilities: (N, K) or (N, K + 1), in [0, 1].
    """
    return (objectness[:, None] * class_probabilities).sqrt()


@ROI_HEADS_REGISTRY.register()
class ProbabilisticCascadeROIHeads(PriorCascadeROIHeads):
    """Detectron2's cascade whose scores count the proposals' own (section 3).

    Works with any proposal generator whose `objectness_logits` are logits of probabilities, the RPN
    too. Training is that of `CascadeROIHeads`.
    """

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Any:
        """As the base class; losses in training, else `Instances` with joint scores."""
        if self.training:
            return super()._forward_box(features, proposals, targets)
        objectness = [p.objectness_logits.float().sigmoid() for p in proposals]
        image_sizes = [p.image_size for p in proposals]
        levels = [features[f] for f in self.box_in_features]
        boxes: tuple[Tensor, ...] = ()
        stages = []
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
            predictions = self._run_stage(levels, proposals, stage)
            boxes = predictor.predict_boxes(predictions, proposals)
            stages.append(predictor.predict_probs(predictions, proposals))
        scores = [
            joint_scores(first_stage, torch.stack(probabilities).mean(dim=0))
            for first_stage, probabilities in zip(
                objectness, zip(*stages, strict=True), strict=True
            )
        ]
        detections, _ = fast_rcnn_inference(
            boxes,
            scores,
            image_sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return detections
