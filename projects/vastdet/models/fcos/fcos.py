# SPDX-License-Identifier: Apache-2.0
"""The FCOS meta-architecture (Tian et al., ICCV 2019) on Detectron2's dense-detector base.

B images, R locations of a level, K classes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from vastdet.models.fcos.head import DISTANCE_ACTIVATIONS, FCOSHead
from vastdet.models.fcos.losses import LOC_LOSS_WEIGHTINGS, LOC_LOSSES, FCOSCriterion
from vastdet.models.fcos.targets import FCOSTargetAssigner

ScoreFunction = Callable[[Tensor, Tensor, float], Tensor]


def product_score(logits: Tensor, centerness_logits: Tensor, threshold: float) -> Tensor:
    """Class probability x centre-ness, 0 where the class probability is at most `threshold`.

    Args:
        logits: (..., R, K).
        centerness_logits: (..., R, 1).
        threshold: in [0, 1).
    """
    probabilities = logits.float().sigmoid()
    scores = probabilities * centerness_logits.float().sigmoid()
    return scores.masked_fill(probabilities <= threshold, 0)


def sqrt_score(logits: Tensor, centerness_logits: Tensor, threshold: float) -> Tensor:
    """Square root of the product, 0 where it is at most `threshold`; as `product_score`.

    From the journal version (Tian et al., TPAMI 2021, equation 4).
    """
    scores = (logits.float().sigmoid() * centerness_logits.float().sigmoid()).sqrt()
    return scores.masked_fill(scores <= threshold, 0)


SCORE_FUNCTIONS: dict[str, ScoreFunction] = {"product": product_score, "sqrt": sqrt_score}


@META_ARCH_REGISTRY.register()
class FCOS(DenseDetector):
    """Predicts, at every location of a feature pyramid, a class, four distances and a centre-ness.

    Takes Detectron2's list of dicts and returns losses or `[{"instances": Instances}]` in the
    frame of the original image (`pred_boxes` XYXY pixels, `scores` in [0, 1], `pred_classes`).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        target_assigner: FCOSTargetAssigner,
        criterion: FCOSCriterion,
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
            head: maps a list of levels to logits, distances (strides) and centre-ness logits.
            head_in_features: the levels in use, high resolution first.
            anchor_generator: one square of one stride about each location.
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
        # Detectron2's decoder reads this name.
        self.box2box_transform = Box2BoxTransformLinear(normalize_by_size=True)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts from `MODEL.FCOS`.

        Raises:
            ValueError: for an unknown choice, level or number of size bounds.
        """
        node = cfg.MODEL.FCOS
        _check_choice("DISTANCE_ACTIVATION", node.DISTANCE_ACTIVATION, DISTANCE_ACTIVATIONS)
        _check_choice("LOC_LOSS_TYPE", node.LOC_LOSS_TYPE, LOC_LOSSES)
        _check_choice("LOC_LOSS_WEIGHTING", node.LOC_LOSS_WEIGHTING, LOC_LOSS_WEIGHTINGS)
        _check_choice("SCORE_TYPE", node.SCORE_TYPE, SCORE_FUNCTIONS)
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        _check_levels(node, list(shapes))
        input_shape = [shapes[f] for f in node.IN_FEATURES]
        strides = [shape.stride for shape in input_shape]
        return {
            "backbone": backbone,
            "head": FCOSHead(
                input_shape=input_shape,
                num_classes=node.NUM_CLASSES,
                num_convs=node.NUM_CONVS,
                norm=node.NORM,
                prior_prob=node.PRIOR_PROB,
                distance_activation=node.DISTANCE_ACTIVATION,
                centerness_on_reg=node.CENTERNESS_ON_REG,
            ),
            "head_in_features": node.IN_FEATURES,
            "anchor_generator": ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(
                sizes=[[s] for s in strides],
                aspect_ratios=[1.0],
                strides=strides,
                offset=node.POINT_OFFSET,
            ),
            "target_assigner": FCOSTargetAssigner(
                num_classes=node.NUM_CLASSES,
                sizes_of_interest=node.SIZES_OF_INTEREST,
                center_sampling_radius=node.CENTER_SAMPLING_RADIUS,
            ),
            "criterion": FCOSCriterion(
                num_classes=node.NUM_CLASSES,
                focal_loss_alpha=node.FOCAL_LOSS_ALPHA,
                focal_loss_gamma=node.FOCAL_LOSS_GAMMA,
                loc_loss_type=node.LOC_LOSS_TYPE,
                loc_loss_weighting=node.LOC_LOSS_WEIGHTING,
            ),
            "score_function": SCORE_FUNCTIONS[node.SCORE_TYPE],
            "num_classes": node.NUM_CLASSES,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor], list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The losses of a batch; called by the base class."""
        logits, distances, centerness = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1]
        )
        targets = self.target_assigner.assign(self.anchor_generator(features), gt_instances)
        return self.criterion(
            torch.cat(logits, dim=1),
            torch.cat(distances, dim=1),
            torch.cat(centerness, dim=1).squeeze(2),
            targets,
        )

    def forward_inference(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor], list[Tensor]],
    ) -> list[Instances]:
        """Detections of a batch in the frame of the network input; called by the base class."""
        logits, distances, centerness = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1]
        )
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
                [level[i] for level in distances],
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


def _check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"MODEL.FCOS.{key} is {value!r}; expected one of {list(choices)}")


def _check_levels(node: CfgNode, levels: list[str]) -> None:
    unknown = [f for f in node.IN_FEATURES if f not in levels]
    if unknown:
        raise ValueError(
            f"MODEL.FCOS.IN_FEATURES names {unknown}, but the backbone returns {levels}"
        )
    bounds = list(node.SIZES_OF_INTEREST)
    if len(bounds) != len(node.IN_FEATURES) - 1 or bounds != sorted(set(bounds)):
        raise ValueError(
            f"MODEL.FCOS.SIZES_OF_INTEREST is {bounds}; expected {len(node.IN_FEATURES) - 1} "
            f"increasing bounds, one between each two of the levels {list(node.IN_FEATURES)}"
        )
