# SPDX-License-Identifier: Apache-2.0
"""A decoder whose queries look at a prompt too (Liu et al. 2024, Grounding DINO, section 3.3).

B images, Q queries, K prompt tokens, C channels.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from vastdet.detr.decoder import Decoder, DecoderLayer, QueryState
from vastdet.detr.deformable import deformable_decoder_layer
from vastdet.detr.prompt import PromptedTokens, PromptTokens
from vastdet.detr.tokens import Tokens
from vastdet.layers.attention import MultiheadAttention


class PromptCrossAttention(MultiheadAttention):
    """Queries look at the tokens of the prompt, which have no positions."""

    def forward(self, state: QueryState, prompt: PromptTokens) -> Tensor:  # type: ignore[override]
        """(B, Q, C)."""
        padding = prompt.padding_mask
        blocked = None if padding is None else padding[:, None, None]
        return super().forward(state.positioned, prompt.values, prompt.values, blocked=blocked)


class PromptedDecoderLayer(DecoderLayer):
    """As `DecoderLayer`, with a look at the prompt before that at the image.

    `prompt_attn` maps a QueryState and the prompt's tokens to (B, Q, C).
    """

    def __init__(
        self,
        self_attn: nn.Module,
        cross_attn: nn.Module,
        ffn: nn.Module,
        *,
        prompt_attn: nn.Module,
        embed_dim: int,
        dropout: float = 0.0,
    ) -> None:
        """`dropout` acts on the results of the attentions; the feed-forward block has its own."""
        super().__init__(self_attn, cross_attn, ffn, embed_dim=embed_dim, dropout=dropout)
        self.prompt_attn = prompt_attn
        self.prompt_attn_norm = nn.LayerNorm(embed_dim)

    def look(self, state: QueryState, memory: Tokens) -> Tensor:
        """The content (B, Q, C) after the prompt, the image and the feed-forward block."""
        assert isinstance(memory, PromptedTokens)
        seen = self.dropout(self.prompt_attn(state, memory.prompt))
        content = self.prompt_attn_norm(state.content + seen)
        return super().look(replace(state, content=content), memory)


class PromptedDecoder(Decoder):
    """A decoder whose class heads align queries with the prompt, such as `ContrastiveAlignment`."""

    def classify(self, layer: int, normed: Tensor, memory: Tokens) -> Tensor:
        """(B, Q, K): how well a query fits each token of the prompt."""
        assert isinstance(memory, PromptedTokens)
        logits: Tensor = self.class_head(layer)(normed, memory.prompt)
        return logits


def prompted_decoder_layer(
    *, embed_dim: int, num_heads: int, dropout: float = 0.0, **attention: Any
) -> DecoderLayer:
    """Dense attention to queries and prompt, then deformable cross-attention to the tokens.

    The arguments are those of `deformable_decoder_layer`; the prompt is seen with as many heads.
    """
    prompt_attn = PromptCrossAttention(embed_dim, num_heads, dropout=dropout)
    return deformable_decoder_layer(
        embed_dim=embed_dim,
        num_heads=num_heads,
        dropout=dropout,
        layer=partial(PromptedDecoderLayer, prompt_attn=prompt_attn),
        **attention,
    )
