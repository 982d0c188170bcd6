# SPDX-License-Identifier: Apache-2.0
"""What an image is searched for, as tokens: one a category, or one a word.

B images, S tokens of an image, K prompt tokens, V labels, C and D channels.
"""

from dataclasses import dataclass, fields, replace

from torch import Tensor

from vastdet.detr.tokens import Tokens


@dataclass(frozen=True)
class PromptTokens:
    """The prompt of each image.

    Attributes:
        values: (B, K, C) features.
        padding_mask: (B, K) bool, True at padding; None where all are valid.
        label_features: (V, D) features of every label there is, of which denoising queries are
            made; None where nobody makes any of them.
    """

    values: Tensor
    padding_mask: Tensor | None = None
    label_features: Tensor | None = None

    def with_values(self, values: Tensor) -> "PromptTokens":
        """The same tokens with other features."""
        return replace(self, values=values)


@dataclass(frozen=True)
class PromptedTokens(Tokens):
    """The cells of an image, and the prompt that it is searched for; see `prompted`."""

    prompt: PromptTokens

    def with_values(self, values: Tensor) -> "PromptedTokens":
        """The same cells with other features, and the same prompt."""
        return replace(self, values=values)

    def with_prompt(self, prompt: PromptTokens) -> "PromptedTokens":
        """The same cells with another prompt."""
        return replace(self, prompt=prompt)


def prompted(tokens: Tokens, prompt: PromptTokens) -> PromptedTokens:
    """Put a prompt to tokens."""
    parts = {field.name: getattr(tokens, field.name) for field in fields(Tokens)}
    return PromptedTokens(**parts, prompt=prompt)
