# SPDX-License-Identifier: Apache-2.0
"""Teaches the match of a shortlist to a trained selection.

B images, C trained categories, N made-up ones, D channels of a category.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vastdet.models.cq_dino.selection import ImageTokens
from vastdet.models.cq_dino.shortlist import TokenMatch, match_loss

# Images of a step, and the categories that it looks at: those that one of these scores highest,
# among which a vast vocabulary's best are, and some of all. Other images each time bring others.
IMAGES_OF_STEP = 8
NUM_HARDEST = 3000
NUM_RANDOM = 3000


@dataclass(frozen=True)
class ScoredImages:
    """What a match learns from.

    Attributes:
        tokens: of B images.
        made_up: (N, D), queries of categories that nobody trained; N may be 0.
        logits: (B, C + N), the selection's scores of the trained categories and of these.
    """

    tokens: ImageTokens
    made_up: Tensor
    logits: Tensor

    def some(self, num_images: int, generator: torch.Generator) -> "ScoredImages":
        """As many of the images, or all if there are no more, in another order."""
        order = torch.randperm(len(self.logits), generator=generator)[:num_images]
        order = order.to(self.logits.device)
        tokens = ImageTokens(self.tokens.values[order], self.tokens.padding_mask[order])
        return ScoredImages(tokens, self.made_up, self.logits[order])

    @classmethod
    def joined(cls, parts: Sequence["ScoredImages"]) -> "ScoredImages":
        """Images that were scored against the same categories."""
        num_tokens = max(x.tokens.values.shape[1] for x in parts)
        values, masks = [], []
        for part in parts:
            padding = num_tokens - part.tokens.values.shape[1]
            values.append(F.pad(part.tokens.values, (0, 0, 0, padding)))
            masks.append(F.pad(part.tokens.padding_mask, (0, padding), value=True))
        tokens = ImageTokens(torch.cat(values), torch.cat(masks))
        return cls(tokens, parts[0].made_up, torch.cat([x.logits for x in parts]))


def fit_match(
    match: TokenMatch,
    queries: Tensor,
    draws: Sequence[ScoredImages],
    *,
    num_steps: int = 6000,
    learning_rate: float = 2e-3,
    progress: bool = False,
) -> float:
    """Teach a match the scores of a trained selection.

    Made-up categories matter: a match that has seen the trained ones alone puts others before
    them. So does their number: among more, those that score highest score higher, and a step looks
    at these above all.

    Args:
        match: is changed in place.
        queries: (C, D), of the trained categories.
        draws: are taken in turn, some images of one in a step.
        num_steps: how often.
        learning_rate: the greatest; it rises for 30 % of the steps and falls to nothing.
        progress: whether to show a bar.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    optimizer = torch.optim.AdamW(match.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in tqdm(range(num_steps), desc="steps", unit="step", disable=not progress):
        batch = draws[step % len(draws)].some(IMAGES_OF_STEP, generator)
        chosen = some_categories(batch.logits, generator)
        rows = F.embedding(chosen, torch.cat([queries, batch.made_up]))
        scores = match(rows, batch.tokens)
        loss = match_loss(scores, batch.logits[:, chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, num_steps // 10) :]
    return sum(last) / len(last)


def some_categories(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The categories, of logits (B, C), that a step learns from: distinct ids, int64, in order."""
    num_categories = logits.shape[1]
    if num_categories <= NUM_HARDEST + NUM_RANDOM:
        return torch.arange(num_categories, device=logits.device)
    hardest = logits.amax(0).topk(NUM_HARDEST).indices
    others = torch.randint(num_categories, (NUM_RANDOM,), generator=generator)
    return torch.cat([hardest, others.to(hardest.device)]).unique()


def made_up_embeddings(
    embedding: Tensor, num_made_up: int, kind: str, generator: torch.Generator
) -> Tensor:
    """Embeddings (N, D) of categories that might be, by those (C, D) of categories that are.

    Args:
        embedding: of the trained categories.
        num_made_up: N.
        kind: `normal` ones have the mean and the covariance of the trained ones; `mixtures` lie
            between two of them each, and look like both to a selection that never saw them.
        generator: draws them, on the CPU.

    Raises:
        ValueError: another kind.
    """
    device = embedding.device
    embedding = embedding.detach().float().cpu()
    if kind == "mixtures":
        one, other = torch.randint(len(embedding), (2, num_made_up), generator=generator)
        share = torch.rand(num_made_up, 1, generator=generator)
        made_up = embedding[one] * share + embedding[other] * (1 - share)
    elif kind == "normal":
        mean, num_trained = embedding.mean(0), len(embedding)
        # Random sums of the differences have their covariance, of whatever rank that is.
        noise = torch.randn(num_made_up, num_trained, generator=generator)
        made_up = mean + noise @ (embedding - mean) / max(1, num_trained - 1) ** 0.5
    else:
        raise ValueError(f"made-up categories of the kind {kind!r}; expected normal or mixtures")
    return made_up.to(device)
