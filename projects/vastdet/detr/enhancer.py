# SPDX-License-Identifier: Apache-2.0
"""The feature enhancer: an encoder in which image and prompt look at each other in every layer.

Liu et al. 2024 (Grounding DINO), section 3.1. B images, S cells, K prompt tokens, C channels.
"""

from collections.abc import Iterable

from torch import nn

from vastdet.detr.deformable import deformable_encoder
from vastdet.detr.encoder import Encoder
from vastdet.detr.fusion import BiAttention, FusionLayer
from vastdet.detr.prompt import PromptedTokens
from vastdet.detr.tokens import Tokens


class FeatureEnhancer(Encoder):
    """Layers of fusion, of the prompt's own where there are such, and of the image's own.

    The parts, N of each:
        layers: map tokens and the cells' references to tokens, such as `EncoderLayer`.
        fusion_layers: map prompted tokens to the same, such as `FusionLayer`.
        prompt_layers: map prompt tokens to prompt tokens.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        *,
        fusion_layers: Iterable[nn.Module],
        prompt_layers: Iterable[nn.Module] | None = None,
    ) -> None:
        """Take the layers, first to last; no `prompt_layers` leave the prompt to the fusion.

        Raises:
            ValueError: the numbers of layers differ.
        """
        super().__init__(layers)
        self.fusion_layers = nn.ModuleList(fusion_layers)
        if prompt_layers is None:
            prompt_layers = (nn.Identity() for _ in self.layers)
        self.prompt_layers = nn.ModuleList(prompt_layers)
        for name, others in (("fusion", self.fusion_layers), ("prompt", self.prompt_layers)):
            if len(others) != len(self.layers):
                raise ValueError(
                    f"got {len(others)} {name} layers for {len(self.layers)} image layers; "
                    "expected as many"
                )

    def forward(self, tokens: Tokens) -> PromptedTokens:
        """Prompted tokens with the values of the last layer, the prompt's too."""
        assert isinstance(tokens, PromptedTokens)
        references = tokens.cell_references()
        state: PromptedTokens = tokens
        for fusion, prompt_layer, layer in zip(
            self.fusion_layers, self.prompt_layers, self.layers, strict=True
        ):
            state = fusion(state)
            state = state.with_prompt(prompt_layer(state.prompt))
            state = layer(state, references)
        return state


def feature_enhancer(
    num_layers: int,
    *,
    embed_dim: int,
    num_heads: int,
    feedforward_dim: int,
    num_levels: int,
    num_points: int,
    dropout: float = 0.0,
    fusion_dim: int = 1024,
    fusion_heads: int = 4,
    fusion_dropout: float = 0.1,
    prompt_layers: Iterable[nn.Module] | None = None,
) -> FeatureEnhancer:
    """A feature enhancer with deformable self-attention of the image.

    Args:
        num_layers: N.
        embed_dim: C.
        num_heads: of the image's self-attention.
        feedforward_dim: channels within the image's feed-forward blocks.
        num_levels: of the image.
        num_points: that a head samples on each level.
        dropout: of the image's layers.
        fusion_dim: channels of the fusion's attention; 1024 in the authors' code.
        fusion_heads: heads of it; 4 there.
        fusion_dropout: share of the fusion's attention weights that is dropped; 0.1 in CQ-DINO's
            code, 0 in Grounding DINO's.
        prompt_layers: see `FeatureEnhancer`.
    """
    image = deformable_encoder(
        num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_levels=num_levels,
        num_points=num_points,
        feedforward_dim=feedforward_dim,
        dropout=dropout,
    )
    fusion_layers = (
        FusionLayer(
            BiAttention(
                embed_dim, hidden_dim=fusion_dim, num_heads=fusion_heads, dropout=fusion_dropout
            ),
            embed_dim=embed_dim,
        )
        for _ in range(num_layers)
    )
    return FeatureEnhancer(image.layers, fusion_layers=fusion_layers, prompt_layers=prompt_layers)
