# SPDX-License-Identifier: Apache-2.0
"""The first stage of CenterNet2 as a proposal generator of Detectron2.

B images, L levels, R locations of a level.
"""

from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from vastdet.layers.boxes import inverse_sigmoid
from vastdet.models.centernet2.head import CenterNetHead
from vastdet.models.centernet2.losses import CenterNetCriterion
from vastdet.models.centernet2.targets import CenterTargetAssigner

# Sides that proposals have at least, in pixels: the authors' centernet.py. RoIAlign needs an area.
MIN_SIDE = 0.01
# Keeps logits finite.
SCORE_EPSILON = 1e-7


class ProposalLimits(NamedTuple):
    """How many proposals are kept, in training or at inference."""

    pre_nms_topk: int  # candidates of a level
    nms_thresh: float  # IoU above which the lower box is dropped, whatever its level
    post_nms_topk: int  # proposals of an image


@PROPOSAL_GENERATOR_REGISTRY.register()
class CenterNetProposals(nn.Module):
    """Finds boxes and how likely each is an object, of whatever class (section 4)."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        target_assigner: CenterTargetAssigner,
        criterion: CenterNetCriterion,
        score_thresh: float,
        limits_train: ProposalLimits,
        limits_test: ProposalLimits,
    ) -> None:
        """Put the parts together.

        Args:
            in_features: the pyramid levels in use, high resolution first.
            head: maps a list of levels to heatmap logits and distances (strides).
            anchor_generator: one square of one stride about each location.
            target_assigner: draws heatmaps and distances.
            criterion: turns predictions and targets into losses.
            score_thresh: probability that a location must exceed, in [0, 1).
            limits_train: what is kept in training.
            limits_test: what is kept at inference.
        """
        super().__init__()
        self.in_features = in_features
        self.centernet_head = head
        self.anchor_generator = anchor_generator
        self.target_assigner = target_assigner
        self.criterion = criterion
        self.score_thresh = score_thresh
        self.limits_train = limits_train
        self.limits_test = limits_test
        self.transform = Box2BoxTransformLinear(normalize_by_size=True)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Build the parts from `MODEL.CENTERNET2`.

        Raises:
            ValueError: for an unknown level, or size ranges that are not one a level.
        """
        node = cfg.MODEL.CENTERNET2
        _check_levels(node, list(input_shape))
        shapes = [input_shape[f] for f in node.IN_FEATURES]
        strides = [shape.stride for shape in shapes]
        return {
            "in_features": node.IN_FEATURES,
            "head": CenterNetHead(
                in_channels=shapes[0].channels,
                num_levels=len(shapes),
                num_convs=node.NUM_CONVS,
                norm=node.NORM,
                prior_prob=node.PRIOR_PROB,
            ),
            "anchor_generator": DefaultAnchorGenerator(
                sizes=[[s] for s in strides], aspect_ratios=[1.0], strides=strides, offset=0.5
            ),
            "target_assigner": CenterTargetAssigner(
                sizes_of_interest=node.SIZES_OF_INTEREST,
                min_overlap=node.HEATMAP_MIN_OVERLAP,
                min_radius=node.HEATMAP_MIN_RADIUS,
            ),
            "criterion": CenterNetCriterion(
                alpha=node.FOCAL_LOSS_ALPHA,
                beta=node.FOCAL_LOSS_BETA,
                gamma=node.FOCAL_LOSS_GAMMA,
                prob_clamp=node.PROB_CLAMP,
                ignore_high_fp=node.IGNORE_HIGH_FP,
                pos_weight=node.POS_WEIGHT,
                neg_weight=node.NEG_WEIGHT,
                reg_weight=node.REG_WEIGHT,
            ),
            "score_thresh": node.SCORE_THRESH,
            "limits_train": ProposalLimits(
                node.PRE_NMS_TOPK_TRAIN, node.NMS_THRESH_TRAIN, node.POST_NMS_TOPK_TRAIN
            ),
            "limits_test": ProposalLimits(
                node.PRE_NMS_TOPK_TEST, node.NMS_THRESH_TEST, node.POST_NMS_TOPK_TEST
            ),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals of a batch and, in training, the losses.

        Args:
            images: the batch, for the sizes of its images.
            features: the pyramid.
            gt_instances: per image, `gt_boxes` (XYXY input pixels); needed in training.

        Returns:
            Per image, best first, `proposal_boxes` (XYXY input pixels, not clipped to the image)
            and `objectness_logits`, the logits of the scores that `proposal_scores` gives; and the
            losses, none at inference.
        """
        levels = [features[f] for f in self.in_features]
        anchors = self.anchor_generator(levels)
        logits, distances = self.centernet_head(levels)
        logits = [level.flatten(1) for level in logits]
        distances = [level.flatten(2).transpose(1, 2) for level in distances]
        losses = {}
        if self.training:
            assert gt_instances is not None, "training needs ground truth"
            targets = self.target_assigner.assign(anchors, gt_instances)
            losses = self.criterion(torch.cat(logits, 1), torch.cat(distances, 1), targets)
        return self.predict_proposals(anchors, logits, distances, images.image_sizes), losses

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        logits: list[Tensor],
        distances: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """The best boxes of each image; see `forward`.

        Args:
            anchors: per level, R squares of one stride.
            logits: per level (B, R).
            distances: per level (B, R, 4) in strides.
            image_sizes: (height, width) of each image.
        """
        limits = self.limits_train if self.training else self.limits_test
        proposals = []
        for i, image_size in enumerate(image_sizes):
            boxes, probabilities = [], []
            for level, level_logits, level_distances in zip(
                anchors, logits, distances, strict=True
            ):
                best = level_logits[i].sigmoid()
                best, index = best.topk(min(limits.pre_nms_topk, len(best)))
                index = index[best > self.score_thresh]
                probabilities.append(best[: len(index)])
                boxes.append(
                    self.transform.apply_deltas(level_distances[i][index], level.tensor[index])
                )
            candidates, scores = torch.cat(boxes), proposal_scores(torch.cat(probabilities))
            candidates[:, 2:] = torch.maximum(candidates[:, 2:], candidates[:, :2] + MIN_SIDE)
            keep = batched_nms(
                candidates, scores, torch.zeros_like(scores, dtype=torch.int64), limits.nms_thresh
            )[: limits.post_nms_topk]
            found = Instances(image_size)
            found.proposal_boxes = Boxes(candidates[keep])
            found.objectness_logits = inverse_sigmoid(scores[keep], SCORE_EPSILON)
            proposals.append(found)
        return proposals


def proposal_scores(probabilities: Tensor) -> Tensor:
    """The square root of the heatmap's probabilities, any shape.

    So the authors' code scores proposals, although the paper multiplies by the probability itself;
    their figures are those of their code. The order of the proposals is the same.
    """
    return probabilities.sqrt()


def _check_levels(node: CfgNode, levels: list[str]) -> None:
    unknown = [f for f in node.IN_FEATURES if f not in levels]
    if unknown:
        raise ValueError(
            f"MODEL.CENTERNET2.IN_FEATURES names {unknown}, but the backbone returns {levels}"
        )
    ranges = node.SIZES_OF_INTEREST
    if len(ranges) != len(node.IN_FEATURES) or any(
        len(bounds) != 2 or bounds[0] >= bounds[1] for bounds in ranges
    ):
        raise ValueError(
            f"MODEL.CENTERNET2.SIZES_OF_INTEREST is {ranges}; expected a [smallest, largest] half "
            f"diagonal for each of the levels {list(node.IN_FEATURES)}"
        )
