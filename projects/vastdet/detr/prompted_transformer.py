# SPDX-License-Identifier: Apache-2.0
"""The transformer of a detector that is told by a prompt what to find.

B images, L levels of H x W cells, K prompt tokens, C channels.
"""

from collections.abc import Sequence

from torch import Tensor

from vastdet.detr.prompt import PromptedTokens, PromptTokens, prompted
from vastdet.detr.structures import DenoisingQueries, SetPredictions, Targets
from vastdet.detr.tokens import Tokens
from vastdet.detr.transformer import SetTransformer


class PromptedTransformer(SetTransformer):
    """As `SetTransformer`, on tokens with a prompt; class logits are those of its K tokens.

    The encoder is such as `FeatureEnhancer`, the query source holds a `PromptedTokenSelection`, the
    decoder is a `PromptedDecoder`. Denoising gets the prompt's `label_features`.
    """

    def forward(  # type: ignore[override]
        self,
        levels: Sequence[Tensor],
        padding_masks: Sequence[Tensor],
        prompt: PromptTokens,
        targets: Targets | None = None,
    ) -> SetPredictions:
        """Predict.

        Args:
            levels: (B, C, H, W) of each level.
            padding_masks: (B, H, W) bool of each level, True at padding.
            prompt: what to find in each image.
            targets: in training; makes the denoising queries. Their labels are rows of
                `label_features`, whatever the prompt is.
        """
        tokens = prompted(self.to_tokens(levels, padding_masks), prompt)
        return self.predict(self.encoder(tokens), targets)

    def denoise(self, targets: Targets, num_matching: int, memory: Tokens) -> DenoisingQueries:
        """The denoising queries, to go before `num_matching` others."""
        assert self.denoising is not None
        assert isinstance(memory, PromptedTokens)
        queries: DenoisingQueries = self.denoising(
            targets, num_matching, memory.prompt.label_features
        )
        return queries
