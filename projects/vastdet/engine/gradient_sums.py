# SPDX-License-Identifier: Apache-2.0
"""Gradients of class logits, added up over the positives and the negatives of a training step.

Sun et al. 2025 (CQ-DINO), section 3.1. A positive is the logit of a query (anchor, location) for
the class of the box that it answers for; every other logit of a counted query is a negative. With
|g| the magnitude of the gradient of a logit,

    rho = sum of |g| over positives / sum of |g| over negatives        (Eq. 3)
    eta = sum of |g| over hard negatives / sum of |g| over negatives   (Eq. 4)

The paper writes both for one query. Here the sums run over all queries of a batch, also those that
answer for no box: that is what the weights of the classifier feel. Where a classifier has a bias
for each class and nothing else drives it, rho tends to 1, since its gradient tends to 0. Sums over
the queries with a positive alone, the equations to the letter, are kept beside them (`matched_*`).

M queries (rows), K logits, C categories, P parts, D definitions, S sums.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from detectron2.utils.comm import get_world_size
from torch import Tensor

from vastdet.layers.distributed import mean_over_ranks
from vastdet.layers.observed_logits import PARTS, PREDICTIONS, ObservedLogits

# What g is: the gradient of the training losses with all their weights, or sigmoid(z) - y, that of
# cross-entropy (Eq. 1).
DEFINITIONS = ("loss", "cross_entropy")
CATEGORY_SUMS = ("positive", "negative", "hard")
SUMS = (*CATEGORY_SUMS, "matched_negative", "matched_hard")
# Of logits that are looked at together: more take more memory and no less time.
MAX_ELEMENTS = 1 << 22

# Maps the probabilities of negatives (M, K), 0 for what is none, to the mask of the hard ones.
HardNegatives = Callable[[Tensor], Tensor]


def above_probability(negatives: Tensor, value: float) -> Tensor:
    """Negatives of at least the probability `value`, whatever their number."""
    return negatives >= value


def top_share(negatives: Tensor, value: float) -> Tensor:
    """The share `value` of the classes of each query that it finds likeliest, at least one."""
    count = max(1, round(value * negatives.shape[1]))
    best = negatives.topk(count, dim=1)
    mask = torch.zeros_like(negatives, dtype=torch.bool)
    return mask.scatter_(1, best.indices, best.values > 0)


HARD_RULES = {"probability": above_probability, "top": top_share}


def hard_negatives(rule: str, value: float) -> HardNegatives:
    """The paper's set H, which it leaves open, by a key of `HARD_RULES` and its value.

    Raises:
        ValueError: an unknown rule, or a value outside (0, 1).
    """
    if rule not in HARD_RULES or not 0 < value < 1:
        raise ValueError(
            f"hard negatives are given as {rule!r}, {value!r}; expected one of {list(HARD_RULES)} "
            "and a number between 0 and 1"
        )
    return partial(HARD_RULES[rule], value=value)


@dataclass(frozen=True)
class Rows:
    """Some queries that count: logits, labels and gradient as `ObservedLogits` has them.

    Attributes:
        logits: (M, K).
        labels: (M,).
        gradient: (M, K).
        categories: (K,) category of each logit, -1 for padding; None where k is that of logit k.
    """

    logits: Tensor
    labels: Tensor
    gradient: Tensor
    categories: Tensor | None


def rows_of(shown: ObservedLogits) -> Iterator[Rows]:
    """The counted queries in pieces of at most `MAX_ELEMENTS` logits, or one query."""
    num_classes = shown.logits.shape[-1]
    layers = (-1, *shown.logits.shape[-3:-1])
    logits = shown.logits.view(*layers, num_classes)
    gradient = shown.gradient.reshape(*layers, num_classes)
    labels = shown.labels.reshape(layers)
    counted = torch.ones_like(labels, dtype=torch.bool)
    if shown.counted is not None:
        counted = shown.counted.expand(shown.labels.shape).reshape(layers)
    categories = shown.source.categories
    images = [slice(None)] if categories is None else [slice(b, b + 1) for b in range(layers[1])]
    step = max(1, MAX_ELEMENTS // max(num_classes, 1))
    for n in range(len(logits)):
        for image in images:
            flat = (x[n, image].flatten(0, 1) for x in (logits, labels, gradient, counted))
            for z, y, g, is_counted in zip(*(x.split(step) for x in flat), strict=True):
                ids = None if categories is None else categories[image][0]
                if is_counted.all():
                    yield Rows(z, y, g, ids)
                else:
                    yield Rows(z[is_counted], y[is_counted], g[is_counted], ids)


class StepGradients:
    """The sums of one training step; `add` is an `Observer`.

    Attributes:
        parts: (P, D, S) float64, over the logits of each of `PARTS`.
        categories: (D, 3, C) float64, `CATEGORY_SUMS` over the logits of each category in
            `PREDICTIONS`.
        num_positives: (C,) float64, how many positives these are.
        is_empty: whether nothing was shown.
    """

    def __init__(self, num_categories: int, hard: HardNegatives, *, scale: float = 1.0) -> None:
        """Start from nothing.

        Args:
            num_categories: C.
            hard: which negatives are hard.
            scale: what the losses were multiplied by before the backward pass.
        """
        self.num_categories = num_categories
        self.hard = hard
        self.scale = scale
        self.is_empty = True
        self.parts = torch.zeros(len(PARTS), len(DEFINITIONS), len(SUMS), dtype=torch.float64)
        self.categories = torch.zeros(
            len(DEFINITIONS), len(CATEGORY_SUMS), num_categories, dtype=torch.float64
        )
        self.num_positives = torch.zeros(num_categories, dtype=torch.float64)

    @torch.no_grad()
    def add(self, shown: ObservedLogits) -> None:
        """Add the logits of one class loss.

        Raises:
            ValueError: logit k is meant to be that of category k, but there are not C of them.
        """
        source, num_logits = shown.source, shown.logits.shape[-1]
        if source.categories is None and num_logits != self.num_categories:
            raise ValueError(
                f"the training data has {self.num_categories} categories, but a class loss with "
                f"sigmoids has {num_logits} logits; set the model's NUM_CLASSES to "
                f"{self.num_categories}, or ANALYSIS.GRADIENTS.ENABLED to False"
            )
        if self.is_empty:
            self._move_to(shown.logits.device)
            self.is_empty = False
        part = PARTS.index(source.part)
        by_category = source.part == PREDICTIONS and not source.class_agnostic
        for rows in rows_of(shown):
            self._add_rows(rows, part, by_category=by_category)

    def _move_to(self, device: torch.device) -> None:
        self.parts = self.parts.to(device)
        self.categories = self.categories.to(device)
        self.num_positives = self.num_positives.to(device)

    def _add_rows(self, rows: Rows, part: int, *, by_category: bool) -> None:
        matched = (rows.labels >= 0).nonzero().squeeze(1)
        place = matched, rows.labels[matched]
        probability = rows.logits.float().sigmoid()
        magnitudes = rows.gradient.float().abs() / self.scale, probability
        positives = magnitudes[0][place], 1 - probability[place]
        # What is left are the negatives; a padded logit is none.
        for magnitude in magnitudes:
            magnitude[place] = 0
            if rows.categories is not None:
                magnitude[:, rows.categories < 0] = 0
        is_hard = self.hard(probability)
        for d, (negative, positive) in enumerate(zip(magnitudes, positives, strict=True)):
            hard = torch.where(is_hard, negative, 0.0)
            columns = [x.sum(dim=0, dtype=torch.float64) for x in (negative, hard)]
            sums = [positive, *columns, negative[matched], hard[matched]]
            self.parts[part, d] += torch.stack([x.sum(dtype=torch.float64) for x in sums])
            if by_category:
                self._add_categories(d, place[1], positive, columns, rows.categories)
        if by_category:
            named = place[1] if rows.categories is None else rows.categories[place[1]]
            ones = torch.ones_like(named, dtype=torch.float64)
            self.num_positives.index_add_(0, named, ones)

    def _add_categories(
        self,
        definition: int,
        labels: Tensor,
        positive: Tensor,
        columns: list[Tensor],
        categories: Tensor | None,
    ) -> None:
        sums = self.categories[definition]
        if categories is None:
            sums[0].index_add_(0, labels, positive.double())
            sums[1:] += torch.stack(columns)
            return
        sums[0].index_add_(0, categories[labels], positive.double())
        # Padding has sums of zero: where they are added does not matter.
        sums[1:].index_add_(1, categories.clamp(min=0), torch.stack(columns))

    def reduced(self) -> list[Tensor]:
        """`parts`, `categories` and `num_positives`, summed over processes, on the CPU.

        Every process must call it.
        """
        tensors = [self.parts, self.categories, self.num_positives]
        return [(mean_over_ranks(x) * get_world_size()).cpu() for x in tensors]
