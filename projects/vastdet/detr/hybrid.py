# SPDX-License-Identifier: Apache-2.0
"""The one-to-many branch beside the one-to-one matching, in training only (H-DETR).

Jia et al., *DETRs with Hybrid Matching*, CVPR 2023: further queries, which the same decoder reads,
are matched with every ground-truth box several times over.

B images, Q queries, of these the first M one-to-one.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vastdet.detr.structures import LayerPredictions, Queries, SetPredictions, Targets
from vastdet.detr.tokens import Tokens
from vastdet.detr.transformer import SetTransformer
from vastdet.layers.observed_logits import ONE_TO_MANY, logits_from


def two_groups(num_first: int, num_queries: int, device: torch.device) -> Tensor:
    """Who must not see whom, (Q, Q) bool: the first `num_first` queries, and the others."""
    is_first = torch.arange(num_queries, device=device) < num_first
    return is_first[:, None] != is_first


class HybridTransformer(SetTransformer):
    """Decodes one-to-one and one-to-many queries together, neither of which sees the other.

    The query source gives the one-to-one queries first, and at inference these alone.
    """

    def __init__(
        self,
        *,
        to_tokens: nn.Module,
        encoder: nn.Module,
        query_source: nn.Module,
        decoder: nn.Module,
        num_one_to_one: int,
    ) -> None:
        """`num_one_to_one` is M; for the parts see `SetTransformer`."""
        super().__init__(
            to_tokens=to_tokens, encoder=encoder, query_source=query_source, decoder=decoder
        )
        self.num_one_to_one = num_one_to_one

    def decode(
        self,
        queries: Queries,
        memory: Tokens,
        proposals: LayerPredictions | None,
        targets: Targets | None,
    ) -> SetPredictions:
        """Predict from the queries; `hybrid` of the predictions are those beyond the first M."""
        num_queries, start = queries.content.shape[1], self.num_one_to_one
        if num_queries <= start:
            return SetPredictions(self.decoder(queries, memory), proposals)
        blocked = two_groups(start, num_queries, queries.content.device)
        layers = self.decoder(replace(queries, blocked=blocked), memory)
        return SetPredictions(
            layers.queries(0, start), proposals, hybrid=SetPredictions(layers.queries(start))
        )


class HybridCriterion(nn.Module):
    """Adds to a criterion's losses those of the one-to-many branch.

    The branch has the same losses on targets that are there several times, under the same names
    with `_o2m` at the end; their sums are divided by as many more boxes.
    """

    def __init__(self, criterion: nn.Module, *, num_repeats: int, weight: float = 1.0) -> None:
        """Take the criterion of both branches.

        Args:
            criterion: maps predictions and targets to losses by name.
            num_repeats: how often the branch is to find each box (the paper's K).
            weight: of the branch's losses (the paper's lambda).
        """
        super().__init__()
        self.criterion = criterion
        self.num_repeats = num_repeats
        self.weight = weight

    def forward(self, predictions: SetPredictions, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses, scalars by name; without a branch those of the criterion alone."""
        losses: dict[str, Tensor] = self.criterion(predictions, targets)
        if predictions.hybrid is None:
            return losses
        with logits_from(ONE_TO_MANY):
            further = self.criterion(predictions.hybrid, targets.repeated(self.num_repeats))
        return losses | {f"{name}_o2m": self.weight * loss for name, loss in further.items()}
