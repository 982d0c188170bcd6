# SPDX-License-Identifier: Apache-2.0
"""Class logits as products of an image's features with the tokens of a prompt.

B images, Q features, K prompt tokens, C channels.
"""

import torch
from torch import Tensor, nn

from vastdet.detr.heads import prior_bias
from vastdet.detr.prompt import PromptTokens

# The logit of a padded prompt token: its probability, focal loss and gradient are exactly 0, which
# those of an infinite one are not.
PADDING_LOGIT = -1e4


class DotProductAlignment(nn.Module):
    """The product of feature and token as it is (Liu et al. 2024, Grounding DINO)."""

    def forward(self, features: Tensor, prompt: PromptTokens) -> Tensor:
        """Logits, `PADDING_LOGIT` at padding.

        Args:
            features: (..., B, Q, C).
            prompt: (B, K, C).

        Returns:
            (..., B, Q, K).
        """
        logits = self.score(features, prompt.values)
        if prompt.padding_mask is None:
            return logits
        return logits.masked_fill(prompt.padding_mask[:, None], PADDING_LOGIT)

    def score(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Features (..., B, Q, C) and tokens (B, K, C) to logits (..., B, Q, K)."""
        return features @ tokens.transpose(-1, -2)


class ContrastiveAlignment(DotProductAlignment):
    """The product divided by sqrt(C), and a learned bias that starts at a class probability.

    CQ-DINO's code and MM-Grounding-DINO, which has it from MMDetection.
    """

    def __init__(self, *, probability: float = 0.01) -> None:
        """`probability` is that of a token whose product with a feature is 0, in (0, 1)."""
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([prior_bias(probability)]))

    def score(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Features (..., B, Q, C) and tokens (B, K, C) to logits (..., B, Q, K)."""
        # The tokens are fewer than the features, and cheaper to scale.
        return super().score(features, tokens * features.shape[-1] ** -0.5) + self.bias
