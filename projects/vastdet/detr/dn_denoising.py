# SPDX-License-Identifier: Apache-2.0
"""The denoising of DN-DETR: every noised box must be restored (Li et al., CVPR 2022, section 4).

B images, G slots for ground-truth boxes, R groups, C channels, K classes. Boxes are CXCYWH as
shares of the image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vastdet.detr.denoising import Denoising, LabelEmbedding


def with_indicator(content: Tensor, value: float) -> Tensor:
    """Contents (..., C - 1) with a last channel: 1 in denoising queries, 0 in matching ones."""
    return F.pad(content, (0, 1), value=value)


class DNDenoising(Denoising):
    """Each box once in each of a fixed number of groups, its centre and size moved.

    The centre moves by up to half a side times `box_noise`, a side by up to itself times it. Empty
    slots do not count, not even as background. The last of the C channels says that a query is one
    of denoising; see `with_indicator`.
    """

    num_versions = 1
    label_embedding: LabelEmbedding

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        *,
        num_groups: int = 5,
        label_noise: float = 0.2,
        box_noise: float = 0.4,
        eps: float = 1e-3,
    ) -> None:
        """Take the amounts.

        Args:
            embed_dim: C.
            num_classes: K.
            num_groups: R, whatever the number of boxes.
            label_noise: share of the labels that are drawn anew, in [0, 1].
            box_noise: scale of the moves, 0 or more.
            eps: bounds the logits of the noised boxes.
        """
        # The last row stands for no known class: dense DN-DETR's matching queries start from it.
        super().__init__(
            LabelEmbedding(num_classes + 1, embed_dim - 1),
            flip_probability=label_noise,
            box_noise=box_noise,
            eps=eps,
        )
        self.num_groups = num_groups

    def count_groups(self, num_slots: int) -> int:
        """The same for every batch."""
        return self.num_groups

    def embed(self, labels: Tensor, label_features: Tensor | None) -> Tensor:
        """Labels (...) to contents (..., C), marked as those of denoising queries."""
        return with_indicator(super().embed(labels, label_features), 1.0)

    def draw_moves(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """In [-1, 1]."""
        return torch.rand(*shape, 4, device=device) * 2 - 1

    def move(self, boxes: Tensor, moves: Tensor) -> Tensor:
        """Move centre and size; the reach is half a side, and a whole one."""
        size = boxes[..., 2:]
        reach = torch.cat([size / 2, size], dim=-1) * self.box_noise
        return (boxes + moves * reach).clamp(0, 1)
