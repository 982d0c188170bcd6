# SPDX-License-Identifier: Apache-2.0
"""Which categories an image shows, and how wrong the scores of all categories are.

B images, K categories, P pairs of a category and one above it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vastdet.vocabulary import CategoryHierarchy


def image_labels(classes: Sequence[Tensor], num_categories: int) -> Tensor:
    """The categories that have a box in each image.

    Args:
        classes: the contiguous ids of each image's boxes, in any order and number.
        num_categories: K.

    Returns:
        (B, K) bool, on the device of `classes`.

    Raises:
        ValueError: an id is not in 0..K-1.
    """
    counts = torch.tensor([len(ids) for ids in classes], device=classes[0].device)
    flat = torch.cat(list(classes)).long()
    outside = flat[(flat < 0) | (flat >= num_categories)]
    if outside.numel():
        raise ValueError(
            f"boxes of category {int(outside[0])}, but the ids are 0..{num_categories - 1}; the "
            "model's number of categories is not that of the dataset"
        )
    images = torch.arange(len(classes), device=flat.device).repeat_interleave(counts)
    present = torch.zeros(len(classes), num_categories, dtype=torch.bool, device=flat.device)
    present[images, flat] = True
    return present


class AncestorMask(nn.Module):
    """Finds the categories above a labelled one, of which the labels say nothing (section 3.4).

    An image with a labelled car shows a vehicle, labelled or not: "vehicle" must not be learned as
    absent there. All ancestors are meant, not only the parents.
    """

    starts: Tensor
    ancestors: Tensor

    def __init__(self, hierarchy: CategoryHierarchy) -> None:
        """Index the ancestors of each of the K categories."""
        super().__init__()
        pairs = torch.from_numpy(hierarchy.category_ancestor_pairs.copy())
        counts = torch.bincount(pairs[:, 0], minlength=hierarchy.num_categories)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.register_buffer("starts", starts, persistent=False)
        self.register_buffer("ancestors", pairs[:, 1].contiguous(), persistent=False)

    def forward(self, present: Tensor) -> Tensor:
        """Labels (B, K) bool to (B, K) bool: True for what is above a label and no label itself.

        The work grows with the number of labels and their ancestors, not with K.

        Raises:
            ValueError: K is not that of the hierarchy.
        """
        num_categories = len(self.starts) - 1
        if present.shape[-1] != num_categories:
            raise ValueError(
                f"labels of {present.shape[-1]} categories, but the hierarchy has "
                f"{num_categories}; build both from one CategorySpace"
            )
        images, categories = present.nonzero(as_tuple=True)
        start = self.starts[categories]
        counts = self.starts[categories + 1] - start
        # Places in `ancestors`: a run of `counts` from each `start`, all runs one after another.
        before = counts.cumsum(0) - counts
        runs = (start - before).repeat_interleave(counts)
        above = self.ancestors[runs + torch.arange(len(runs), device=runs.device)]
        excluded = torch.zeros_like(present)
        excluded[images.repeat_interleave(counts), above] = True
        return excluded & ~present


class AsymmetricLoss:
    """Binary cross-entropy that forgets easy negatives (Ridnik et al. 2021).

    With p the probability of a category, its loss is -(1 - p)^gamma_positive log p where it is
    present. Where it is absent, p_m = max(p - clip, 0) and the loss is
    -p_m^gamma_negative log(1 - p_m). As in the code of that paper's authors and of CQ-DINO's, the
    powers carry no gradient, and a probability below `eps` counts as `eps`, without gradient:
    a present category whose logit is below -18 is not lifted.

    The defaults are those of CQ-DINO on V3Det. Its released code has 0, 0 and 0 on COCO, with the
    weight 0.1, which is plain cross-entropy.
    """

    def __init__(
        self,
        *,
        gamma_negative: float = 7.0,
        gamma_positive: float = 0.0,
        clip: float = 0.05,
        eps: float = 1e-8,
    ) -> None:
        """Set the exponents, the probability below which an absent category has no loss, and eps.

        Raises:
            ValueError: an exponent is negative, `clip` not in [0, 1), or `eps` not in (0, 1).
        """
        if min(gamma_negative, gamma_positive) < 0 or not 0 <= clip < 1 or not 0 < eps < 1:
            raise ValueError(
                f"asymmetric loss with exponents {gamma_negative}, {gamma_positive}, clip {clip} "
                f"and eps {eps}; exponents are 0 or more, 0 <= clip < 1 and 0 < eps < 1"
            )
        self.gamma_negative = gamma_negative
        self.gamma_positive = gamma_positive
        self.clip = clip
        self.eps = eps

    def __call__(self, logits: Tensor, present: Tensor, excluded: Tensor | None = None) -> Tensor:
        """The sum over images and categories, a scalar in float32.

        Args:
            logits: (B, K), any float type.
            present: (B, K) bool.
            excluded: (B, K) bool, True where neither presence nor absence is known; None for
                nowhere.
        """
        return self.per_category(logits, present, excluded).sum()

    def per_category(self, logits: Tensor, present: Tensor, excluded: Tensor | None) -> Tensor:
        """The losses before the sum, (B, K) float32 (float64 for such logits)."""
        losses = self._losses(logits, present)
        return losses if excluded is None else losses.masked_fill(excluded, 0)

    @staticmethod
    def improbability(logits: Tensor) -> Tensor:
        """One minus the probabilities, with all digits where a category is likely."""
        return (-logits).sigmoid()

    def _losses(self, logits: Tensor, present: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        absent = (self.improbability(logits) + self.clip).clamp(max=1)
        right = torch.where(present, logits.sigmoid(), absent).clamp(min=self.eps)
        losses = -right.log()
        if self.gamma_positive > 0 or self.gamma_negative > 0:
            wrong = 1 - right.detach()
            losses = losses * torch.where(
                present, wrong**self.gamma_positive, wrong**self.gamma_negative
            )
        return losses


class ReleasedAsymmetricLoss(AsymmetricLoss):
    """The authors' code does not leave excluded categories out but takes their logits as zero.

    They count as absent, which adds a constant, 0.0022 a category by default, and no gradient. And
    it subtracts probabilities from one: without a clip, the loss of an absent category of a float32
    logit beyond 10 is theirs, rounding included.
    """

    @staticmethod
    def improbability(logits: Tensor) -> Tensor:
        """See `AsymmetricLoss.improbability`."""
        return 1 - logits.sigmoid()

    def per_category(self, logits: Tensor, present: Tensor, excluded: Tensor | None) -> Tensor:
        """See `AsymmetricLoss.per_category`."""
        if excluded is not None:
            logits = logits.masked_fill(excluded, 0)
            present = present & ~excluded
        return self._losses(logits, present)
