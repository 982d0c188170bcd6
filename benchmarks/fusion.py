# SPDX-License-Identifier: Apache-2.0
"""Attention between image and prompt on the CPU: one matrix of scores, or one for each direction.

    python benchmarks/fusion.py [--repeats 7] [--threads 1]

Prints medians with quartiles in ms of the forward pass, of a training step with dropout, and of the
same in bfloat16: our attention, the same with two calls of scaled_dot_product_attention in its
place, and that of transformers' Grounding DINO, in turn in one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoBiMultiHeadAttention,
)

from vastdet.detr.fusion import BiAttention
from vastdet.layers.attention import attend

NUM_CELLS, NUM_PROMPT, WIDTH = 17_821, 100, 256  # an image of 800 x 1066, four levels
DROPOUT = 0.1


class TwoMatrices(BiAttention):
    """Each direction computes the scores for itself, and keeps none of them where torch can."""

    def forward(
        self,
        image: Tensor,
        prompt: Tensor,
        image_padding: Tensor | None = None,
        prompt_padding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `BiAttention.forward`."""
        cells, words = self.image_proj(image), self.prompt_proj(prompt)
        dropout = self.dropout if self.training else 0.0
        directions = (
            (cells, words, self.prompt_value_proj(prompt), prompt_padding, self.image_out_proj),
            (words, cells, self.image_value_proj(image), image_padding, self.prompt_out_proj),
        )
        image_seen, prompt_seen = (
            out_proj(
                attend(
                    query,
                    key,
                    value,
                    num_heads=self.num_heads,
                    blocked=None if padding is None else padding[:, None, None],
                    dropout=dropout,
                )
            )
            for query, key, value, padding, out_proj in directions
        )
        return image_seen, prompt_seen


class Theirs(nn.Module):
    """The attention of transformers, called as ours is."""

    def __init__(self) -> None:
        """With the widths of Grounding DINO."""
        super().__init__()
        self.attention = GroundingDinoBiMultiHeadAttention(
            GroundingDinoConfig(fusion_dropout=DROPOUT)
        )

    def forward(
        self, image: Tensor, prompt: Tensor, image_padding: Tensor, prompt_padding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `BiAttention.forward`."""
        (image, _), (prompt, _) = self.attention(image, prompt, image_padding, prompt_padding)
        return image, prompt


def inputs() -> tuple[Tensor, ...]:
    """Features of image and prompt, and masks with a little padding."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, NUM_CELLS, WIDTH, generator=generator)
    prompt = torch.randn(1, NUM_PROMPT, WIDTH, generator=generator)
    image_padding = torch.arange(NUM_CELLS)[None] >= NUM_CELLS - 500
    prompt_padding = torch.arange(NUM_PROMPT)[None] >= NUM_PROMPT - 5
    return image, prompt, image_padding, prompt_padding


def forward(part: nn.Module, given: tuple[Tensor, ...]) -> None:
    """What inference does."""
    with torch.no_grad():
        part.eval()(*given)


def training_step(part: nn.Module, given: tuple[Tensor, ...]) -> None:
    """A forward and a backward pass with dropout."""
    image, prompt = part.train()(*given)
    (image.sum() + prompt.sum()).backward()


def milliseconds(run: Callable[[], None]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    parts = {
        "one matrix (ours)": BiAttention(WIDTH, dropout=DROPOUT),
        "two matrices": TwoMatrices(WIDTH, dropout=DROPOUT),
        "transformers": Theirs(),
    }
    given = inputs()
    print("| case | " + " | ".join(parts) + " |\n|" + "---|" * (len(parts) + 1))
    for case, run in (("forward", forward), ("training step", training_step)):
        for dtype in (torch.float32, torch.bfloat16):
            times: dict[str, list[float]] = {name: [] for name in parts}
            for _ in range(options.repeats):
                for name, part in parts.items():
                    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                        times[name].append(milliseconds(lambda p=part, r=run: r(p, given)))
            cells = []
            for taken in times.values():
                low, middle, high = statistics.quantiles(taken, n=4)
                cells.append(f"{middle:.0f} ({low:.0f} to {high:.0f})")
            name = case if dtype == torch.float32 else f"{case}, bf16"
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
