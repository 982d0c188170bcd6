# SPDX-License-Identifier: Apache-2.0
"""The detector that FCOS and ATSS derive from, on Detectron2's dense-detector base.

B images, R locations of a level or of all levels, K classes.
"""

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from vastdet.one_stage.criterion import CenternessCriterion
from vastdet.one_stage.scores import ScoreFunction
from vastdet.one_stage.targets import LocationAssigner

Predictions = tuple[list[Tensor], list[Tensor], list[Tensor]]


class CenternessDetector(DenseDetector):
    """Predicts, at every location of a feature pyramid, a class, a box and a centre-ness.

    Takes Detectron2's list of dicts and returns losses or `[{"instances": Instances}]` in the
    frame of the original image (`pred_boxes` XYXY pixels, `scores` in [0, 1], `pred_classes`).

    A member sets `box2box_transform`, which makes boxes of the head's four numbers and the anchors
    (Detectron2's decoder reads this name), overrides `side_distances` unless these numbers are
    distances already, and has a `from_config`.
    """

    box2box_transform: Any

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        target_assigner: LocationAssigner,
        criterion: CenternessCriterion,
        score_function: ScoreFunction,
        num_classes: int,
        test_score_thresh: float,
        test_topk_candidates: int,
        test_nms_thresh: float,
        max_detections_per_image: int,
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        """Put the parts together.

        Args:
            backbone: gives the pyramid.
            head: maps a list of levels to logits, box numbers and centre-ness logits.
            head_in_features: the levels in use, high resolution first.
            anchor_generator: one square about each location.
            target_assigner: gives each location its class and distances.
            criterion: turns predictions and targets into losses.
            score_function: scores (R, K) from logits, centre-ness logits and threshold.
            num_classes: K.
            test_score_thresh: threshold for `score_function`, in [0, 1).
            test_topk_candidates: candidates kept on each level before NMS.
            test_nms_thresh: IoU above which the lower box of a class is dropped.
            max_detections_per_image: detections kept.
            pixel_mean: subtracted from the image, per channel.
            pixel_std: then divides it.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.target_assigner = target_assigner
        self.criterion = criterion
        self.score_function = score_function
        self.num_classes = num_classes
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    def side_distances(self, box_numbers: Tensor, anchors: Tensor) -> Tensor:
        """Distances from the locations to the sides of the predicted boxes, in anchors' sides.

        Args:
            box_numbers: the head's output (B, R, 4).
            anchors: squares about the locations (R, 4), XYXY input pixels.

        Returns:
            (B, R, 4): left, top, right, bottom; negative where the box leaves the location out.
        """
        return box_numbers

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: Predictions,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The losses of a batch; called by the base class."""
        logits, box_numbers, centerness = (torch.cat(x, dim=1) for x in self._flat(predictions))
        anchors = self.anchor_generator(features)
        return self.criterion(
            logits,
            self.side_distances(box_numbers, Boxes.cat(anchors).tensor),
            centerness.squeeze(2),
            self.target_assigner.assign(anchors, gt_instances),
        )

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: Predictions
    ) -> list[Instances]:
        """Detections of a batch in the frame of the network input; called by the base class."""
        logits, box_numbers, centerness = self._flat(predictions)
        anchors = self.anchor_generator(features)
        scores = [
            self.score_function(level_logits, level_centerness, self.test_score_thresh)
            for level_logits, level_centerness in zip(logits, centerness, strict=True)
        ]
        results = []
        for i, image_size in enumerate(images.image_sizes):
            candidates = self._decode_multi_level_predictions(
                anchors,
                [level[i] for level in scores],
                [level[i] for level in box_numbers],
                0.0,  # the score function has set the rest to 0
                self.test_topk_candidates,
                image_size,
            )
            candidates.pred_boxes.clip(image_size)
            keep = batched_nms(
                candidates.pred_boxes.tensor,
                candidates.scores,
                candidates.pred_classes,
                self.test_nms_thresh,
            )
            results.append(candidates[keep[: self.max_detections_per_image]])
        return results

    def _flat(self, predictions: Predictions) -> list[list[Tensor]]:
        """Maps (B, D, H, W) to (B, R, D), per output and level."""
        return self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
