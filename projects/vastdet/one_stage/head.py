# SPDX-License-Identifier: Apache-2.0
"""A head of two towers shared by all pyramid levels, three outputs and one scale a level.

B images, K classes, C channels, H x W a feature map.
"""

from collections.abc import Callable

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor, nn


class CenternessHead(RetinaNetHead):
    """Class logits, four numbers for a box, centre-ness logits (FCOS, sections 3.1 and 3.3)."""

    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_convs: int,
        box_activation: Callable[[Tensor], Tensor],
        norm: str = "GN",
        prior_prob: float = 0.01,
        centerness_on_reg: bool = False,
    ) -> None:
        """Build the towers.

        Args:
            input_shape: channels of each level, all equal.
            num_classes: K.
            num_convs: convolutions of each tower.
            box_activation: applied to a level's scale x the regression output, in float32.
            norm: norm of the towers; BN and SyncBN keep separate statistics for each level.
            prior_prob: class probability at the start, in (0, 1).
            centerness_on_reg: read centre-ness from the regression tower.
        """
        channels = input_shape[0].channels
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            num_anchors=1,
            conv_dims=[channels] * num_convs,
            norm=norm,
            prior_prob=prior_prob,
        )
        self.centerness = nn.Conv2d(channels, 1, kernel_size=3, padding=1)
        nn.init.normal_(self.centerness.weight, std=0.01)
        nn.init.zeros_(self.centerness.bias)
        self.scales = nn.Parameter(torch.ones(len(input_shape)))
        self.box_activation = box_activation
        self.centerness_on_reg = centerness_on_reg

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Predict on each level.

        Args:
            features: one (B, C, H, W) a level, high resolution first.

        Returns:
            One tensor a level of class logits (B, K, H, W), of box numbers (B, 4, H, W) after
            `box_activation`, and of centre-ness logits (B, 1, H, W).
        """
        logits, box_numbers, centerness = [], [], []
        for feature, scale in zip(features, self.scales, strict=True):
            cls_feature = self.cls_subnet(feature)
            reg_feature = self.bbox_subnet(feature)
            logits.append(self.cls_score(cls_feature))
            # Half precision would overflow in exp and in the areas of the IoU loss.
            box_numbers.append(self.box_activation(scale * self.bbox_pred(reg_feature).float()))
            centerness.append(
                self.centerness(reg_feature if self.centerness_on_reg else cls_feature)
            )
        return logits, box_numbers, centerness
