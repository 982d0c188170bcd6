# SPDX-License-Identifier: Apache-2.0
"""What the detector is told of the selected categories: the tokens of its prompt.

B images, K selected categories, D channels of a category query, C channels of the transformer.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from vastdet.models.cq_dino.category_side import ImageCategories


class SeenPrompt(nn.Linear):
    """A projection of what the selected queries became when they had seen the image.

    As in the authors' code; the paper (section 3.2) only says that the selected queries go on.
    """

    def __init__(self, query_dim: int, embed_dim: int) -> None:
        """`query_dim` is D, `embed_dim` C."""
        super().__init__(query_dim, embed_dim)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, categories: ImageCategories) -> Tensor:
        """(B, K, C)."""
        return super().forward(categories.selected.queries)


class SeenAndOwnPrompt(SeenPrompt):
    """As `SeenPrompt`, plus a projection of the queries themselves, the same in every image.

    A query that has seen the image tells above all whether its category is there: the selection's
    loss asks for nothing else. What tells categories from each other is left in few directions.
    """

    def __init__(self, query_dim: int, embed_dim: int) -> None:
        """See `SeenPrompt`."""
        super().__init__(query_dim, embed_dim)
        self.own_proj = nn.Linear(query_dim, embed_dim, bias=False)
        nn.init.xavier_uniform_(self.own_proj.weight)

    def forward(self, categories: ImageCategories) -> Tensor:
        """(B, K, C)."""
        own = F.embedding(categories.selected.indices, categories.queries)
        projected: Tensor = self.own_proj(own.to(self.own_proj.weight.dtype))
        return super().forward(categories) + projected


PROMPTS: dict[str, Callable[[int, int], SeenPrompt]] = {
    "seen": SeenPrompt,
    "seen_and_own": SeenAndOwnPrompt,
}


def category_prompt(name: str, query_dim: int, embed_dim: int) -> SeenPrompt:
    """The prompt by its name in `CATEGORY.PROMPT`, from D channels to C.

    Raises:
        ValueError: there is no such prompt.
    """
    if name not in PROMPTS:
        raise ValueError(
            f"MODEL.CQ_DINO.CATEGORY.PROMPT is {name!r}; expected one of {', '.join(PROMPTS)}"
        )
    return PROMPTS[name](query_dim, embed_dim)
