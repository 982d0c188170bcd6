# SPDX-License-Identifier: Apache-2.0
"""What a decoder starts from: boxes that the encoder proposes, and learned contents.

A source maps the encoded tokens to queries and to what its proposal stage predicts, or None.

B images, Q queries, C channels.
"""

from torch import nn

from vastdet.detr.query_selection import TokenSelection
from vastdet.detr.structures import LayerPredictions, Queries
from vastdet.detr.tokens import Tokens


class MixedQueries(nn.Module):
    """Boxes come from the image, contents are learned (Zhang et al. 2023, DINO, section 3.4)."""

    def __init__(self, selection: TokenSelection, embed_dim: int) -> None:
        """`embed_dim` is C; `selection` knows the number of queries."""
        super().__init__()
        self.selection = selection
        self.content = nn.Embedding(selection.num_queries, embed_dim)

    def forward(self, memory: Tokens) -> tuple[Queries, LayerPredictions | None]:
        """Queries at the best boxes, and what the proposal stage predicts for them."""
        selected = self.selection(memory)
        content = self.content.weight.expand(len(memory.values), -1, -1)
        return Queries(content, selected.boxes), selected.predictions
