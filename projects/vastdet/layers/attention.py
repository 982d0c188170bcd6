# SPDX-License-Identifier: Apache-2.0
"""Dense multi-head attention with the parameters of torch's, on scaled_dot_product_attention.

B images, Q queries, S keys, C channels, E channels of queries and keys, H heads, M channels of the
tokens that other tokens look at.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiheadAttention(nn.Module):
    """Attention whose parameters have the names and layout of `torch.nn.MultiheadAttention`.

    Query and key are projected in one matrix product where they are the same tensor, as in the
    self-attention of every DETR.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        """`dropout` acts on the attention weights in training."""
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        blocked: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C).
            key: (B, S, C); give the same object as `query` where they are equal.
            value: (B, S, C).
            blocked: bool that broadcasts to (B, H, Q, S), True where a query must not look.
            bias: float that broadcasts to (B, H, Q, S), added to the attention logits.

        Returns:
            (B, Q, C).
        """
        width = query.shape[-1]
        if query is key:
            q, k = F.linear(
                query, self.in_proj_weight[: 2 * width], self.in_proj_bias[: 2 * width]
            ).chunk(2, dim=-1)
        else:
            q = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
            k = F.linear(
                key,
                self.in_proj_weight[width : 2 * width],
                self.in_proj_bias[width : 2 * width],
            )
        v = F.linear(value, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        out = attend(
            q,
            k,
            v,
            num_heads=self.num_heads,
            blocked=blocked,
            bias=bias,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out_proj(out)


class CrossAttention(nn.Module):
    """Attention from queries to tokens of another width, such as words or an image's cells.

    What the tokens give, `keys_and_values`, is apart from what the queries read, so that queries in
    several pieces compute it once.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, context_dim: int, dropout: float = 0.0
    ) -> None:
        """`embed_dim` is C, `context_dim` is M; `dropout` acts on the attention weights."""
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_proj = nn.Linear(embed_dim, embed_dim)
        self.key_proj = nn.Linear(context_dim, embed_dim)
        self.value_proj = nn.Linear(context_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        for linear in (self.query_proj, self.key_proj, self.value_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, S, M) to keys and values, both (B, S, C)."""
        return self.key_proj(context), self.value_proj(context)

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, *, blocked: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C), or (1, Q, C) for queries that all images share.
            keys: (B, S, C), see `keys_and_values`.
            values: (B, S, C).
            blocked: bool that broadcasts to (B, H, Q, S), True where a query must not look.

        Returns:
            (B, Q, C).
        """
        projected = self.query_proj(query).expand(keys.shape[0], -1, -1)
        dropout = self.dropout if self.training else 0.0
        out = attend(
            projected, keys, values, num_heads=self.num_heads, blocked=blocked, dropout=dropout
        )
        return self.out_proj(out)


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raise ValueError unless the channels can be shared out among the heads."""
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}"
        )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    blocked: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What each head sees, side by side.

    Args:
        query: (B, Q, E), projected already; each head has E / H channels of it.
        key: (B, S, E).
        value: (B, S, C).
        num_heads: H.
        blocked: see `MultiheadAttention.forward`.
        bias: see `MultiheadAttention.forward`.
        dropout: share of the attention weights that is dropped.

    Returns:
        (B, Q, C).
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = attention_mask(blocked, bias, q.dtype)
    # torch's fused kernel for bf16 on the CPU takes 2 to 14 times as long as three operators.
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16
    attention = plain_attention if plain else F.scaled_dot_product_attention
    out = attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return out.transpose(1, 2).flatten(-2)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, dropout_p: float
) -> Tensor:
    """What `scaled_dot_product_attention` computes, by matrix products and a softmax.

    Queries and keys (B, H, Q or S, E / H), values (B, H, S, C / H) to (B, H, Q, C / H). A query
    that may look at nothing gets the mean of all values, not a number that is none.
    """
    # Autocast would have the softmax in float32, and copy all weights there and back.
    with torch.autocast(query.device.type, enabled=False):
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, torch.finfo(logits.dtype).min)
        elif attn_mask is not None:
            logits = (logits + attn_mask).clamp(min=torch.finfo(logits.dtype).min)
        return F.dropout(logits.softmax(dim=-1), dropout_p) @ value


def attention_mask(
    blocked: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """Join what blocks and what biases into the mask of scaled_dot_product_attention."""
    if bias is None:
        return None if blocked is None else ~blocked
    bias = bias.to(dtype)
    return bias if blocked is None else bias.masked_fill(blocked, float("-inf"))
