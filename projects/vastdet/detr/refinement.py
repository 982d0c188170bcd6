# SPDX-License-Identifier: Apache-2.0
"""How the boxes of queries move from decoder layer to decoder layer.

B images, Q queries, C channels. Boxes are CXCYWH as shares of the image.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vastdet.layers.boxes import inverse_sigmoid
from vastdet.layers.precision import at_least_float32


@dataclass(frozen=True)
class References:
    """The boxes (B, Q, 4), or points (B, Q, 2), that a layer starts from.

    `detached` is what the layer reads; `with_gradient` are the same numbers with the gradient of
    the layer before, for refinements that let it through.
    """

    detached: Tensor
    with_gradient: Tensor


class Refinement(ABC):
    """Makes a layer's boxes, and the references of the next layer, from the output of a layer."""

    def __init__(self, eps: float) -> None:
        """`eps` bounds logits of boxes: 1e-5 in Deformable DETR, 1e-3 in DINO."""
        self.eps = eps

    @abstractmethod
    def step(
        self,
        box_head: nn.Module,
        content: Tensor,
        normed: Tensor,
        references: References,
        *,
        is_last: bool,
    ) -> tuple[Tensor, References]:
        """Predict.

        Args:
            box_head: maps (B, Q, C) to deltas (B, Q, 4) of the boxes' logits.
            content: (B, Q, C) output of the layer, as the next layer reads it.
            normed: the same after the decoder's norm, as the class head reads it.
            references: what the layer started from.
            is_last: whether no layer follows.

        Returns:
            Boxes (B, Q, 4) and the references of the next layer.
        """

    def moved(self, delta: Tensor, references: Tensor, eps: float | None = None) -> Tensor:
        """Boxes whose logits are those of the references (boxes, or points) plus `delta`.

        `eps` bounds the logits, None for the one that the refinement has.
        """
        logits = inverse_sigmoid(at_least_float32(references), self.eps if eps is None else eps)
        if logits.shape[-1] == 2:
            logits = torch.cat([logits, torch.zeros_like(logits)], dim=-1)
        return (at_least_float32(delta) + logits).sigmoid()


class FixedReferences(Refinement):
    """Every layer predicts from the first references (Deformable DETR without refinement)."""

    def step(
        self,
        box_head: nn.Module,
        content: Tensor,
        normed: Tensor,
        references: References,
        *,
        is_last: bool,
    ) -> tuple[Tensor, References]:
        """See `Refinement.step`."""
        return self.moved(box_head(normed), references.with_gradient), references


class IterativeRefinement(Refinement):
    """Each layer corrects the boxes of the one before, which get no gradient from it.

    Zhu et al. 2021, appendix A.4.
    """

    def step(
        self,
        box_head: nn.Module,
        content: Tensor,
        normed: Tensor,
        references: References,
        *,
        is_last: bool,
    ) -> tuple[Tensor, References]:
        """See `Refinement.step`."""
        boxes = self.moved(box_head(normed), references.detached)
        return boxes, References(boxes.detach(), boxes.detach())


class LookForwardTwice(Refinement):
    """As iterative refinement, but a layer's loss also reaches the deltas of the layer before.

    Zhang et al. 2023 (DINO), section 3.5. The references move by the output before the decoder's
    norm, the predictions by that after it, as in the authors' code.
    """

    def __init__(self, eps: float, *, prediction_eps: float | None = None) -> None:
        """`prediction_eps` bounds the logits for the predictions, None for `eps` there too.

        MMDetection has 1e-5 for the predictions and 1e-3 for the references.
        """
        super().__init__(eps)
        self.prediction_eps = eps if prediction_eps is None else prediction_eps

    def step(
        self,
        box_head: nn.Module,
        content: Tensor,
        normed: Tensor,
        references: References,
        *,
        is_last: bool,
    ) -> tuple[Tensor, References]:
        """See `Refinement.step`."""
        delta = box_head(normed)
        boxes = self.moved(delta, references.with_gradient, self.prediction_eps)
        if is_last:
            return boxes, references
        # Without a norm in the decoder, one pass through the head serves both.
        delta = delta if content is normed else box_head(content)
        moved = self.moved(delta, references.detached)
        return boxes, References(moved.detach(), moved)


class DirectBoxes(Refinement):
    """Each layer predicts its boxes anew, from no reference (Carion et al. 2020, section 3.2)."""

    def __init__(self) -> None:
        """No logit of a reference needs a bound."""
        super().__init__(eps=0.0)

    def step(
        self,
        box_head: nn.Module,
        content: Tensor,
        normed: Tensor,
        references: References,
        *,
        is_last: bool,
    ) -> tuple[Tensor, References]:
        """See `Refinement.step`; references are handed on unread."""
        return at_least_float32(box_head(normed)).sigmoid(), references
