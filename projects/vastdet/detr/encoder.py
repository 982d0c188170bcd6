# SPDX-License-Identifier: Apache-2.0
"""The encoder stack: layers of self-attention and feed-forward blocks, given as parts.

B images, S tokens, C channels, L levels.
"""

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from vastdet.detr.tokens import Tokens
from vastdet.layers.mlp import xavier_mlp
from vastdet.layers.ms_deform_attn import MultiScaleDeformableAttention


class DeformableSelfAttention(MultiScaleDeformableAttention):
    """Each cell samples all levels about its own place (Zhu et al. 2021, section 4.1)."""

    def forward(self, tokens: Tokens, references: Tensor) -> Tensor:  # type: ignore[override]
        """Tokens and their `cell_references` to features (B, S, C)."""
        return super().forward(
            tokens.values + tokens.positions,
            tokens.values,
            references,
            tokens.spatial_shapes,
            tokens.level_start_index,
            tokens.padding_mask,
        )


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward block, each with a residual connection and a norm after it.

    `self_attn` maps tokens and the cells' references to features (B, S, C).
    """

    def __init__(
        self, self_attn: nn.Module, ffn: nn.Module, *, embed_dim: int, dropout: float = 0.0
    ) -> None:
        """`dropout` acts on the result of the attention; the feed-forward block has its own."""
        super().__init__()
        self.self_attn = self_attn
        self.self_attn_norm = nn.LayerNorm(embed_dim)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tokens, references: Tensor) -> Tokens:
        """The tokens with new values."""
        attended = self.dropout(self.self_attn(tokens, references))
        values = self.self_attn_norm(tokens.values + attended)
        return tokens.with_values(self.ffn_norm(values + self.ffn(values)))


class Encoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        """Take the layers, first to last."""
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tokens) -> Tokens:
        """The tokens with the values of the last layer."""
        references = tokens.cell_references()
        for layer in self.layers:
            tokens = layer(tokens, references)
        return tokens


class PositionScalingEncoder(Encoder):
    """Before each layer, what a cell holds decides how much each channel of its position counts.

    One scale serves all layers, and none is left on the result (Liu et al. 2022, DAB-DETR, the
    authors' code).
    """

    def __init__(self, layers: Iterable[nn.Module], *, embed_dim: int) -> None:
        """Take the layers, first to last, of width `embed_dim`."""
        super().__init__(layers)
        self.position_scale = xavier_mlp(embed_dim, embed_dim, embed_dim, 2)

    def forward(self, tokens: Tokens) -> Tokens:
        """The tokens with the values of the last layer, and their positions as they came."""
        references = tokens.cell_references()
        for layer in self.layers:
            positions = tokens.positions * self.position_scale(tokens.values)
            scaled = replace(tokens, positions=positions)
            tokens = tokens.with_values(layer(scaled, references).values)
        return tokens
