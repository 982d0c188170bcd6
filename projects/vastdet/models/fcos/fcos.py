# SPDX-License-Identifier: Apache-2.0
"""The FCOS meta-architecture (Tian et al., ICCV 2019) on the parts of `vastdet.one_stage`."""

from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from vastdet.models.fcos.distances import DISTANCE_ACTIVATIONS
from vastdet.models.fcos.targets import FCOSTargetAssigner
from vastdet.one_stage.build import common_parts, criterion_settings
from vastdet.one_stage.criterion import LOC_LOSS_WEIGHTINGS, LOC_LOSSES, CenternessCriterion
from vastdet.one_stage.detector import CenternessDetector
from vastdet.one_stage.scores import ScoreFunction, product_score, sqrt_score
from vastdet.one_stage.targets import SIDE_DISTANCES

SCORE_FUNCTIONS: dict[str, ScoreFunction] = {"product": product_score, "sqrt": sqrt_score}


@META_ARCH_REGISTRY.register()
class FCOS(CenternessDetector):
    """Predicts, at every location of a feature pyramid, a class, four distances and a centre-ness.

    Anchors are squares of one stride, so that distances are in strides.
    """

    box2box_transform = SIDE_DISTANCES

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
        parts = common_parts(
            cfg,
            "FCOS",
            anchor_scale=1,
            box_activation=DISTANCE_ACTIVATIONS[node.DISTANCE_ACTIVATION],
            centerness_on_reg=node.CENTERNESS_ON_REG,
        )
        _check_bounds(node)
        return parts | {
            "target_assigner": FCOSTargetAssigner(
                num_classes=node.NUM_CLASSES,
                sizes_of_interest=node.SIZES_OF_INTEREST,
                center_sampling_radius=node.CENTER_SAMPLING_RADIUS,
            ),
            "criterion": CenternessCriterion(
                **criterion_settings(node),
                loc_loss_type=node.LOC_LOSS_TYPE,
                loc_loss_weighting=node.LOC_LOSS_WEIGHTING,
            ),
            "score_function": SCORE_FUNCTIONS[node.SCORE_TYPE],
        }


def _check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"MODEL.FCOS.{key} is {value!r}; expected one of {list(choices)}")


def _check_bounds(node: CfgNode) -> None:
    bounds = list(node.SIZES_OF_INTEREST)
    if len(bounds) != len(node.IN_FEATURES) - 1 or bounds != sorted(set(bounds)):
        raise ValueError(
            f"MODEL.FCOS.SIZES_OF_INTEREST is {bounds}; expected {len(node.IN_FEATURES) - 1} "
            f"increasing bounds, one between each two of the levels {list(node.IN_FEATURES)}"
        )
