# SPDX-License-Identifier: Apache-2.0
"""Where queries come from: the tokens that the encoder scores highest (two-stage detectors).

B images, S tokens, Q queries, C channels, K classes. Boxes are CXCYWH as shares of the image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vastdet.detr.prompt import PromptedTokens
from vastdet.detr.structures import LayerPredictions
from vastdet.detr.tokens import Tokens
from vastdet.layers.precision import at_least_float32

# Size of a proposal on level l: BASE_SIZE * 2^l of the image's sides (Zhu et al. 2021, A.4).
BASE_SIZE = 0.05
# Proposals whose centre or size lies outside of this range are not offered.
VALID_RANGE = (0.01, 0.99)


def token_proposals(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The box that each token proposes before any learning.

    Returns:
        Logits (B, S, 4) of the boxes, infinite where the token is padding or its box is out of
        range, and a mask (B, S), True for the valid ones.
    """
    boxes = []
    for level, centers in enumerate(tokens.cell_centers()):
        size = torch.full_like(centers, BASE_SIZE * 2.0**level)
        boxes.append(torch.cat([centers, size], dim=-1))
    proposals = torch.cat(boxes, dim=1)
    low, high = VALID_RANGE
    valid = ((proposals > low) & (proposals < high)).all(dim=-1) & ~tokens.padding_mask
    logits = torch.log(proposals / (1 - proposals))
    return logits.masked_fill(~valid.unsqueeze(-1), float("inf")), valid


@dataclass(frozen=True)
class SelectedTokens:
    """The chosen tokens of each image, best first.

    Attributes:
        indices: (B, Q) int64.
        features: (B, Q, C).
        predictions: logits and boxes, N = 1, with gradient.
    """

    indices: Tensor
    features: Tensor
    predictions: LayerPredictions

    @property
    def boxes(self) -> Tensor:
        """(B, Q, 4) reference boxes, without gradient."""
        return self.predictions.boxes[0].detach()


class HeadSelection(nn.Module):
    """Scores candidates by a class head and keeps the best ones.

    `class_head` and `box_head` map (..., C) to K logits and to deltas of the proposals' logits.
    """

    def __init__(
        self,
        num_queries: int,
        *,
        class_head: nn.Module,
        box_head: nn.Module,
        num_training_queries: int | None = None,
    ) -> None:
        """`num_queries` is Q, in training another number if given."""
        super().__init__()
        self.num_inference_queries = num_queries
        self.num_training_queries = num_queries
        if num_training_queries is not None:
            self.num_training_queries = num_training_queries
        self.class_head = class_head
        self.box_head = box_head

    @property
    def num_queries(self) -> int:
        """Q in the mode that the module is in."""
        return self.num_training_queries if self.training else self.num_inference_queries

    def best(self, features: Tensor, proposals: Tensor, tokens: Tokens) -> SelectedTokens:
        """Select by the highest class logit of features (B, S, C) with proposals (B, S, 4).

        They are those of `tokens`.
        """
        logits = self.classify(features, tokens)
        indices = logits.max(dim=-1).values.topk(self.num_queries, dim=1).indices
        return self.select(features, proposals, logits, indices)

    def classify(self, features: Tensor, tokens: Tokens) -> Tensor:
        """The logits (B, S, K) of features; members whose head reads more override it."""
        logits: Tensor = self.class_head(features)
        return logits

    def select(
        self, features: Tensor, proposals: Tensor, logits: Tensor, indices: Tensor
    ) -> SelectedTokens:
        """The candidates `indices` (B, Q) of those with logits (B, S, K)."""
        chosen = gather_tokens(features, indices)
        moved = at_least_float32(self.box_head(chosen)) + gather_tokens(proposals, indices)
        predictions = LayerPredictions(gather_tokens(logits, indices)[None], moved.sigmoid()[None])
        return SelectedTokens(indices, chosen, predictions)


class TokenSelection(HeadSelection):
    """Scores every token and keeps the best ones (DINO's mixed query selection, section 3.4)."""

    def __init__(
        self,
        embed_dim: int,
        num_queries: int,
        *,
        class_head: nn.Module,
        box_head: nn.Module,
        num_training_queries: int | None = None,
    ) -> None:
        """`embed_dim` is C; see `HeadSelection`."""
        super().__init__(
            num_queries,
            class_head=class_head,
            box_head=box_head,
            num_training_queries=num_training_queries,
        )
        self.output = nn.Linear(embed_dim, embed_dim)
        self.output_norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tokens) -> SelectedTokens:
        """Select by the highest class logit.

        Raises:
            ValueError: there are fewer tokens than queries.
        """
        return self.best(*self.candidates(tokens), tokens)

    def candidates(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Features (B, S, C) and logits of proposals (B, S, 4) of all tokens.

        Raises:
            ValueError: there are fewer tokens than queries.
        """
        require_tokens(tokens, self.num_queries)
        proposals, valid = token_proposals(tokens)
        values = tokens.values.masked_fill(~valid.unsqueeze(-1), 0)
        return self.output_norm(self.output(values)), proposals


class PromptedTokenSelection(TokenSelection):
    """Scores every token by the prompt token that it fits best (Grounding DINO, section 3.2).

    `class_head` maps features and the prompt to logits, such as `ContrastiveAlignment`.
    """

    def classify(self, features: Tensor, tokens: Tokens) -> Tensor:
        """The logits (B, S, K) of features, one for each token of the prompt."""
        assert isinstance(tokens, PromptedTokens)
        logits: Tensor = self.class_head(features, tokens.prompt)
        return logits


def require_tokens(tokens: Tokens, num_queries: int) -> None:
    """Check that there are tokens enough to choose from.

    Raises:
        ValueError: there are fewer tokens than queries.
    """
    num_tokens = tokens.values.shape[1]
    if num_tokens < num_queries:
        raise ValueError(
            f"the feature levels {list(tokens.sizes)} have {num_tokens} cells in all, fewer "
            f"than the {num_queries} queries; enlarge INPUT.MIN_SIZE_TRAIN and _TEST, or "
            "lower NUM_QUERIES"
        )


@dataclass(frozen=True)
class SelectedOfAll(SelectedTokens):
    """Chosen tokens whose `predictions` are those of all tokens, (1, B, S, ...)."""

    @property
    def boxes(self) -> Tensor:
        """(B, Q, 4) reference boxes of the chosen tokens, without gradient."""
        return gather_tokens(self.predictions.boxes[0].detach(), self.indices)


class ObjectnessSelection(TokenSelection):
    """Keeps the tokens with the highest logit of class 0, which only means an object.

    Zhu et al. 2021, appendix A.4. In training every token predicts, for the loss; at inference the
    chosen ones alone.
    """

    def forward(self, tokens: Tokens) -> SelectedTokens:
        """Select by the first class logit.

        Raises:
            ValueError: there are fewer tokens than queries.
        """
        features, proposals = self.candidates(tokens)
        logits = self.class_head(features)
        indices = logits[..., 0].topk(self.num_queries, dim=1).indices
        if not self.training:
            return self.select(features, proposals, logits, indices)
        boxes = (at_least_float32(self.box_head(features)) + proposals).sigmoid()
        predictions = LayerPredictions(logits[None], boxes[None])
        return SelectedOfAll(indices, gather_tokens(features, indices), predictions)


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` (B, Q) of x (B, S, M): (B, Q, M)."""
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
