# SPDX-License-Identifier: Apache-2.0
"""The side of the categories: which of them an image may show, and the loss that teaches it.

B images, C categories, K selected ones, D channels of a query, F channels of a map of H x W cells.
"""

from dataclasses import dataclass

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from vastdet.detr.structures import Targets
from vastdet.models.cq_dino.image_labels import AncestorMask, AsymmetricLoss, image_labels
from vastdet.models.cq_dino.selection import SelectedCategories


@dataclass(frozen=True)
class ImageCategories:
    """What the side of the categories tells the detector.

    Attributes:
        queries: (C, D), of all categories, the same for all images.
        selected: those that each image may show.
    """

    queries: Tensor
    selected: SelectedCategories


class CategorySide(nn.Module):
    """From a feature map to the categories that the image may show.

    The parts:
        queries: gives the queries (C, D) of all categories.
        image_tokens: maps a map (B, F, H, W) and its mask to `ImageTokens`.
        selection: maps queries and tokens to `SelectedCategories`.
    """

    def __init__(
        self, *, queries: nn.Module, image_tokens: nn.Module, selection: nn.Module
    ) -> None:
        """Put the parts together."""
        super().__init__()
        self.queries = queries
        self.image_tokens = image_tokens
        self.selection = selection

    def forward(
        self, features: Tensor, padding_mask: Tensor, required: Tensor | None = None
    ) -> ImageCategories:
        """Select.

        Args:
            features: (B, F, H, W).
            padding_mask: (B, H, W), True at padding.
            required: (B, C) bool, categories that are selected whatever their scores; or None. In
                training only.
        """
        tokens = self.image_tokens(features, padding_mask)
        if self.training or torch.is_grad_enabled():
            queries = self.queries()
            return ImageCategories(queries, self.selection(queries, tokens, required))
        prepared = self.selection.prepared(self.queries)
        return ImageCategories(prepared.queries, self.selection(prepared, tokens))


class SelectionCriterion(nn.Module):
    """The loss of the selection: which categories have a box in the image (section 3.3).

    The authors add up the losses of the images of a process, 2 in their runs. The sum over
    categories is averaged over images here and has the weight 2, which is the same for 2 images
    and does not change with their number.
    """

    def __init__(
        self, loss: AsymmetricLoss, *, mask: AncestorMask | None, weight: float = 2.0
    ) -> None:
        """Take the parts.

        Args:
            loss: of logits (B, C), labels, and of what to leave out.
            mask: finds the ancestors of labels, which are left out; None for a flat vocabulary.
            weight: of the mean over images.
        """
        super().__init__()
        self.loss = loss
        self.mask = mask
        self.weight = weight

    def forward(self, selected: SelectedCategories, present: Tensor) -> dict[str, Tensor]:
        """`loss_selection` of images whose categories are `present` (B, C) bool.

        Losses that the selection computed itself go along as they are.
        """
        excluded = None if self.mask is None else self.mask(present)
        assert selected.all_logits is not None
        total = self.loss(selected.all_logits, present, excluded)
        weight = self.weight_of_sum(len(present))
        return {"loss_selection": weight * total, **selected.losses}

    def weight_of_sum(self, num_images: int) -> float:
        """What the sum over images and categories is multiplied by."""
        return self.weight / max(1, num_images)


class ReleasedSelectionCriterion(SelectionCriterion):
    """The authors' code adds up the losses of a process's images, however many there are.

    The weight is the same as in `SelectionCriterion` for the 2 images of their runs.
    """

    def weight_of_sum(self, num_images: int) -> float:
        """See `SelectionCriterion.weight_of_sum`."""
        return super().weight_of_sum(2)


def category_recall(selected: SelectedCategories, present: Tensor) -> float | None:
    """The share of an image's categories that are among its K highest scores: AR^C_K of a batch.

    As in evaluation, the mean over the images that show a category; `present` is (B, C) bool. None
    where no image shows any.
    """
    num_present = present.sum(dim=1)
    if not num_present.any():
        return None
    assert selected.all_logits is not None
    best = selected.all_logits.topk(selected.indices.shape[1], dim=1).indices
    shares = present.gather(1, best).sum(dim=1) / num_present
    return float(shares[num_present > 0].mean())


def ranks_of(labels: Tensor, indices: Tensor) -> Tensor:
    """Where categories stand among the selected ones of their image.

    Args:
        labels: (B, G) categories in [0, C).
        indices: (B, K), the selected ones.

    Returns:
        (B, G) int64 in [0, K), -1 for a category that was not selected.
    """
    found = labels[:, :, None] == indices[:, None]
    return torch.where(found.any(dim=-1), found.int().argmax(dim=-1), -1)


def labels_of_slots(targets: Targets, num_categories: int) -> Tensor:
    """The categories (B, C) bool that have a box in each image."""
    counts = targets.num_boxes
    classes = [labels[:count] for labels, count in zip(targets.labels, counts, strict=True)]
    return image_labels(classes, num_categories)


def selection_outputs(selected: SelectedCategories) -> list[dict[str, Tensor]]:
    """What an image's output tells of the selection; see `CQDINO`."""
    return [
        {"selected_categories": indices, "selection_scores": logits.float().sigmoid()}
        for indices, logits in zip(selected.indices, selected.logits, strict=True)
    ]


def log_recall(selected: SelectedCategories, present: Tensor) -> None:
    """Log AR^C_K of a training batch as `category_recall`, where there is a training."""
    if not has_event_storage():
        return
    recall = category_recall(selected, present)
    if recall is not None:
        get_event_storage().put_scalar("category_recall", recall)
