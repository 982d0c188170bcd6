# SPDX-License-Identifier: Apache-2.0
"""Feed-forward parts of transformers and their heads."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them; the last one is `layers[-1]`."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        """`num_layers` linear layers; all but the last give `hidden_dim` channels."""
        super().__init__()
        dims = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) to (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def xavier_mlp(input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> MLP:
    """An MLP whose weights start as those of the authors' transformers do, by Glorot's rule."""
    mlp = MLP(input_dim, hidden_dim, output_dim, num_layers)
    for layer in mlp.layers:
        nn.init.xavier_uniform_(layer.weight)
    return mlp


class FeedForward(nn.Module):
    """The two-layer block of a transformer layer: `linear2(activation(linear1(x)))`."""

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        """`activation` makes the module between the layers; dropout follows it and the end."""
        super().__init__()
        self.linear1 = nn.Linear(embed_dim, hidden_dim)
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(hidden_dim, embed_dim)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) to the same; the residual connection is the caller's."""
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))
