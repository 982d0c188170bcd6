# SPDX-License-Identifier: Apache-2.0
"""The losses of masks (Carion et al. 2020, section 4.2).

B images, Q queries, M matched queries, G slots for ground truth, H x W the padded batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from vastdet.detr.criterion import SetCriterion
from vastdet.detr.structures import SetPredictions, Targets
from vastdet.layers.precision import at_least_float32

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0

# Maps images (M,) and queries (M,) of them to mask logits (M, h, w).
MaskLogits = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class MaskPredictions(SetPredictions):
    """What a criterion sees of a detector with masks.

    Attributes:
        mask_logits: masks of the last layer's queries, made for those that are asked for: the
            others would cost as much, and no loss reads them.
        padded_size: (H, W); the masks cover as much.
    """

    mask_logits: MaskLogits
    padded_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class MaskTargets(Targets):
    """Boxes with their masks.

    Attributes:
        masks: (B, G, H, W) bool, H x W as large as the largest image; False in empty slots.
    """

    masks: Tensor


def mask_targets(targets: Targets, instances: Sequence[Instances]) -> MaskTargets:
    """Add `gt_masks` (BitMasks, or polygons, which are drawn here) of the same instances.

    Raises:
        ValueError: an image has no `gt_masks`.
    """
    height = max((x.image_size[0] for x in instances), default=0)
    width = max((x.image_size[1] for x in instances), default=0)
    shape = (*targets.labels.shape, height, width)
    padded = torch.zeros(shape, dtype=torch.bool, device=targets.labels.device)
    for i, (image, name) in enumerate(zip(instances, targets.names, strict=True)):
        if not image.has("gt_masks"):
            raise ValueError(
                f"{name} has no gt_masks, only {sorted(image.get_fields())}; set MODEL.MASK_ON "
                "True and train on a dataset with masks"
            )
        masks = image.gt_masks
        if isinstance(masks, PolygonMasks):
            masks = BitMasks.from_polygon_masks(masks, *image.image_size)
        padded[i, : len(image), : image.image_size[0], : image.image_size[1]] = masks.tensor
    return MaskTargets(**vars(targets), masks=padded)


def mask_losses(logits: Tensor, gt_masks: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of masks (M, H, W), each summed over them.

    The focal loss (Lin et al. 2017) is the mean over pixels, the dice loss (Milletari et al. 2016)
    has 1 added above and below the line.
    """
    logits = at_least_float32(logits).flatten(1)
    masks = gt_masks.to(logits.dtype).flatten(1)
    focal = sigmoid_focal_loss(logits, masks, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA)
    p = logits.sigmoid()
    shared = 2 * (p * masks).sum(dim=1) + 1
    dice = 1 - shared / (p.sum(dim=1) + masks.sum(dim=1) + 1)
    return focal.mean(dim=1).sum(), dice.sum()


class MaskCriterion(SetCriterion):
    """Adds `loss_mask` (focal) and `loss_dice` of the last layer's matched queries.

    Both are divided by the number of boxes. The matching does not look at masks.
    """

    def __init__(self, *, mask_weight: float, dice_weight: float, **parts: Any) -> None:
        """Take the weights of both losses; for the others see `SetCriterion`."""
        super().__init__(**parts)
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight

    def further_losses(
        self, predictions: SetPredictions, matched: Tensor, targets: Targets, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """See `SetCriterion.further_losses`."""
        assert isinstance(predictions, MaskPredictions)
        assert isinstance(targets, MaskTargets)
        image, query = (matched >= 0).nonzero(as_tuple=True)
        num_masks = len(image)
        if not num_masks:
            # A query whose loss does not count keeps the mask head in the graph.
            image = query = matched.new_zeros(1)
        logits = predictions.mask_logits(image, query)
        height, width = predictions.padded_size
        logits = F.interpolate(
            logits[:, None], (height, width), mode="bilinear", align_corners=False
        )[:, 0]
        gt_masks = targets.masks[image, matched[image, query].clamp(min=0)]
        gt_masks = F.pad(gt_masks, (0, width - gt_masks.shape[2], 0, height - gt_masks.shape[1]))
        focal, dice = mask_losses(logits, gt_masks)
        counts = min(num_masks, 1)
        return {
            "loss_mask": counts * self.mask_weight * focal / num_boxes,
            "loss_dice": counts * self.dice_weight * dice / num_boxes,
        }
