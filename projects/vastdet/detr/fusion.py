# SPDX-License-Identifier: Apache-2.0
"""Image and prompt look at each other (Liu et al. 2024, Grounding DINO, section 3.1; GLIP, 3.2).

B images, S cells, K prompt tokens, C channels, E channels of the attention, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.detr.prompt import PromptedTokens
from vastdet.layers.attention import check_heads

# How much of what was seen is added at the start, as in the authors' code.
START_GAMMA = 1e-4


class BiAttention(nn.Module):
    """Attention in both directions from one matrix of scores, which is normalised once for each.

    The matrix is (B, H, K, S), prompt first: with few rows and many columns both softmaxes and all
    products were fast so, and faster in training than two calls of
    scaled_dot_product_attention, each of which computes the scores anew (benchmarks/fusion.md).
    """

    def __init__(
        self, embed_dim: int, *, hidden_dim: int = 1024, num_heads: int = 4, dropout: float = 0.0
    ) -> None:
        """`embed_dim` is C, `hidden_dim` E; `dropout` acts on the attention weights."""
        super().__init__()
        check_heads(hidden_dim, num_heads)
        self.num_heads = num_heads
        self.scale = (hidden_dim // num_heads) ** -0.5
        self.dropout = dropout
        self.image_proj = nn.Linear(embed_dim, hidden_dim)
        self.prompt_proj = nn.Linear(embed_dim, hidden_dim)
        self.image_value_proj = nn.Linear(embed_dim, hidden_dim)
        self.prompt_value_proj = nn.Linear(embed_dim, hidden_dim)
        self.image_out_proj = nn.Linear(hidden_dim, embed_dim)
        self.prompt_out_proj = nn.Linear(hidden_dim, embed_dim)
        for linear in self.children():
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        image: Tensor,
        prompt: Tensor,
        image_padding: Tensor | None = None,
        prompt_padding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            image: (B, S, C).
            prompt: (B, K, C).
            image_padding: (B, S) bool, True at padding, which the prompt does not look at.
            prompt_padding: (B, K) bool, True at padding, which the image does not look at.

        Returns:
            What the image sees, (B, S, C), and what the prompt sees, (B, K, C). Padding sees what
            it would see if it were none, as in the authors' code.
        """
        cells = self.heads(self.image_proj(image))
        words = self.heads(self.prompt_proj(prompt) * self.scale)
        scores = words @ cells.transpose(-1, -2)
        cell_mask = None if image_padding is None else image_padding[:, None, None]
        word_mask = None if prompt_padding is None else prompt_padding[:, None, :, None]
        of_words = self.weights(hidden(scores, word_mask), dim=-2, dtype=cells.dtype)
        of_cells = self.weights(hidden(scores, cell_mask), dim=-1, dtype=cells.dtype)
        seen_by_image = of_words.transpose(-1, -2) @ self.heads(self.prompt_value_proj(prompt))
        seen_by_prompt = of_cells @ self.heads(self.image_value_proj(image))
        return (
            self.image_out_proj(seen_by_image.transpose(1, 2).flatten(-2)),
            self.prompt_out_proj(seen_by_prompt.transpose(1, 2).flatten(-2)),
        )

    def heads(self, x: Tensor) -> Tensor:
        """(B, N, E) to (B, H, N, E / H)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def weights(self, scores: Tensor, *, dim: int, dtype: torch.dtype) -> Tensor:
        """Weights that add up to 1 along `dim`, less what dropout drops, computed in float32."""
        exact = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(dim=dim, dtype=exact).to(dtype)
        return F.dropout(weights, self.dropout) if self.training and self.dropout else weights


def hidden(scores: Tensor, padding: Tensor | None) -> Tensor:
    """The scores, lowest at padding (True), which broadcasts to them.

    Finite, so that a row or a column of nothing but padding is not NaN.
    """
    if padding is None:
        return scores
    return scores.masked_fill(padding, torch.finfo(scores.dtype).min)


class FusionLayer(nn.Module):
    """Norms, attention in both directions, and a residual connection with a learned scale.

    The connection starts from the normalised features, not from those that came, as in the authors'
    code of Grounding DINO and of CQ-DINO.
    """

    def __init__(self, attention: nn.Module, *, embed_dim: int) -> None:
        """`attention` is such as `BiAttention`; `embed_dim` is C."""
        super().__init__()
        self.image_norm = nn.LayerNorm(embed_dim)
        self.prompt_norm = nn.LayerNorm(embed_dim)
        self.attention = attention
        self.image_gamma = nn.Parameter(torch.full((embed_dim,), START_GAMMA))
        self.prompt_gamma = nn.Parameter(torch.full((embed_dim,), START_GAMMA))

    def forward(self, tokens: PromptedTokens) -> PromptedTokens:
        """The tokens and their prompt with new values."""
        image, prompt = self.image_norm(tokens.values), self.prompt_norm(tokens.prompt.values)
        image_delta, prompt_delta = self.attention(
            image, prompt, tokens.padding_mask, tokens.prompt.padding_mask
        )
        image = image + self.image_gamma * image_delta
        prompt = prompt + self.prompt_gamma * prompt_delta
        return tokens.with_values(image).with_prompt(tokens.prompt.with_values(prompt))
