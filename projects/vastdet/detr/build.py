# SPDX-License-Identifier: Apache-2.0
"""What the configs of the members have in common, as arguments of the parts and as parts.

`cfg` is the whole config and `node` the member's; `detr.config_keys` adds the keys that are read.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from vastdet.detr.criterion import LossWeights
from vastdet.detr.denoising import ContrastiveDenoising, ContrastiveGroups
from vastdet.detr.dn_denoising import DNDenoising
from vastdet.detr.losses import ClassLoss, FocalLoss, SigmoidCrossEntropyLoss
from vastdet.detr.matcher import HungarianMatcher, focal_cost
from vastdet.detr.neck import ChannelMapper, MapProjection
from vastdet.detr.transformer import LevelsToTokens
from vastdet.layers.positions import SinePositionEncoding


def common_parts(cfg: CfgNode, node: CfgNode) -> dict[str, Any]:
    """The arguments of `SetDetector` but for neck, transformer and criterion."""
    return {
        "backbone": build_backbone(cfg),
        "num_classes": node.NUM_CLASSES,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def dense_parts(cfg: CfgNode, node: CfgNode) -> dict[str, Any]:
    """`common_parts` and the neck of a member that reads one map."""
    parts = common_parts(cfg, node)
    shapes = parts["backbone"].output_shape()
    return parts | {"neck": MapProjection(shapes, node.IN_FEATURE, embed_dim=node.EMBED_DIM)}


def deformable_parts(cfg: CfgNode, node: CfgNode, **neck_options: Any) -> dict[str, Any]:
    """`common_parts` and the neck of a member that reads several levels; see `ChannelMapper`."""
    parts = common_parts(cfg, node)
    neck = ChannelMapper(
        parts["backbone"].output_shape(),
        node.IN_FEATURES,
        embed_dim=node.EMBED_DIM,
        num_levels=node.NUM_LEVELS,
        **neck_options,
    )
    return parts | {"neck": neck}


def dense_settings(node: CfgNode) -> dict[str, Any]:
    """The arguments of encoder and decoder layers with dense attention."""
    return {
        "embed_dim": node.EMBED_DIM,
        "num_heads": node.NUM_HEADS,
        "feedforward_dim": node.FEEDFORWARD_DIM,
        "dropout": node.DROPOUT,
    }


def deformable_settings(node: CfgNode) -> dict[str, Any]:
    """The arguments of encoder and decoder layers with deformable attention."""
    return dense_settings(node) | {"num_levels": node.NUM_LEVELS, "num_points": node.NUM_POINTS}


def levels_to_tokens(
    node: CfgNode, *, temperature: float = 10000.0, offset: float = -0.5
) -> LevelsToTokens:
    """Sine positions and level embeddings; those of Deformable DETR where nothing else is said."""
    encoding = SinePositionEncoding(node.EMBED_DIM, temperature=temperature, offset=offset)
    return LevelsToTokens(encoding, embed_dim=node.EMBED_DIM, num_levels=node.NUM_LEVELS)


def contrastive_denoising(
    node: CfgNode,
    denoising: Callable[..., ContrastiveGroups] = ContrastiveDenoising,
    *,
    eps: float,
) -> ContrastiveGroups | None:
    """The denoising queries of DINO, None where `DENOISING.NUM_QUERIES` is 0.

    `denoising` takes what `ContrastiveDenoising` takes.
    """
    if not node.DENOISING.NUM_QUERIES:
        return None
    return denoising(
        node.EMBED_DIM,
        node.NUM_CLASSES,
        num_queries=node.DENOISING.NUM_QUERIES,
        label_noise=node.DENOISING.LABEL_NOISE,
        box_noise=node.DENOISING.BOX_NOISE,
        eps=eps,
    )


def dn_denoising(node: CfgNode, *, eps: float) -> DNDenoising:
    """The denoising queries of DN-DETR."""
    return DNDenoising(
        node.EMBED_DIM,
        node.NUM_CLASSES,
        num_groups=node.DENOISING.NUM_GROUPS,
        label_noise=node.DENOISING.LABEL_NOISE,
        box_noise=node.DENOISING.BOX_NOISE,
        eps=eps,
    )


def loss_weights(node: CfgNode) -> LossWeights:
    """The weights of the losses; `node` holds their keys."""
    return LossWeights(node.CLASS_WEIGHT, node.BBOX_WEIGHT, node.GIOU_WEIGHT)


def matcher_weights(node: CfgNode) -> dict[str, Any]:
    """The weights of the costs, as arguments of `HungarianMatcher`; `node` holds their keys."""
    return {
        "class_weight": node.CLASS_WEIGHT,
        "l1_weight": node.BBOX_WEIGHT,
        "giou_weight": node.GIOU_WEIGHT,
    }


def focal_settings(node: CfgNode) -> dict[str, Any]:
    """The arguments of the focal loss and of its cost; `node` holds their keys."""
    return {"alpha": node.FOCAL_ALPHA, "gamma": node.FOCAL_GAMMA}


def class_loss(node: CfgNode) -> ClassLoss:
    """The class loss that `node` names; ValueError for an unknown name."""
    if node.CLASS_LOSS == "focal":
        return FocalLoss(**focal_settings(node))
    if node.CLASS_LOSS == "cross_entropy":
        return SigmoidCrossEntropyLoss()
    raise ValueError(f"CLASS_LOSS is {node.CLASS_LOSS!r}; expected 'focal' or 'cross_entropy'")


def focal_parts(loss: CfgNode, cost: CfgNode, *, giou_eps: float = 0.0) -> dict[str, Any]:
    """The arguments of `SetCriterion` for one-to-one matching with the focal cost.

    Args:
        loss: the node with the weights of the losses, the class loss and the focal settings.
        cost: the node with the weights of the matcher's costs.
        giou_eps: added to the divisors of the generalised IoU.
    """
    focal = focal_settings(loss)
    return {
        "assigner": HungarianMatcher(
            **matcher_weights(cost),
            giou_eps=giou_eps,
            class_cost=partial(focal_cost, **focal),
        ),
        "class_loss": class_loss(loss),
        "weights": loss_weights(loss),
        "giou_eps": giou_eps,
    }
