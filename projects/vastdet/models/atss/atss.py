# SPDX-License-Identifier: Apache-2.0
"""The ATSS meta-architecture (Zhang et al., CVPR 2020) on the parts of `vastdet.one_stage`.

B images, R anchors of all levels.
"""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor, nn

from vastdet.models.atss.targets import ATSSTargetAssigner
from vastdet.one_stage.build import common_parts, criterion_settings
from vastdet.one_stage.criterion import CenternessCriterion
from vastdet.one_stage.detector import CenternessDetector
from vastdet.one_stage.scores import root_product_score
from vastdet.one_stage.targets import SIDE_DISTANCES


@META_ARCH_REGISTRY.register()
class ATSS(CenternessDetector):
    """Predicts, at every anchor of a feature pyramid, a class, four deltas and a centre-ness."""

    # Weights of the deltas as in Fast R-CNN (the authors' atss.py, class BoxCoder).
    box2box_transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.ATSS`.

        Raises:
            ValueError: for an unknown level, or fewer than one candidate a level.
        """
        node = cfg.MODEL.ATSS
        if node.TOPK < 1:
            raise ValueError(
                f"MODEL.ATSS.TOPK is {node.TOPK}; expected at least 1 candidate a level (paper: 9)"
            )
        parts = common_parts(
            cfg,
            "ATSS",
            anchor_scale=node.ANCHOR_SCALE,
            box_activation=nn.Identity(),
            centerness_on_reg=True,
        )
        return parts | {
            "target_assigner": ATSSTargetAssigner(num_classes=node.NUM_CLASSES, topk=node.TOPK),
            "criterion": CenternessCriterion(
                **criterion_settings(node),
                loc_loss_type="giou",
                loc_loss_weighting="centerness_mean",
                loc_loss_weight=node.LOC_LOSS_WEIGHT,
            ),
            "score_function": root_product_score,
        }

    def side_distances(self, box_numbers: Tensor, anchors: Tensor) -> Tensor:
        """Distances from the anchors' centres to the sides of the predicted boxes.

        Args:
            box_numbers: deltas (B, R, 4).
            anchors: (R, 4), XYXY input pixels.

        Returns:
            (B, R, 4): left, top, right, bottom, in sides of the anchor; negative where the box
            leaves the centre out.
        """
        anchors = anchors.expand_as(box_numbers).flatten(0, 1)
        boxes = self.box2box_transform.apply_deltas(box_numbers.flatten(0, 1), anchors)
        return SIDE_DISTANCES.get_deltas(anchors, boxes).view_as(box_numbers)
