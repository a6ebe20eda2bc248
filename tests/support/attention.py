"""Attention over all keys, added up from blocks of them as inference does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scamac_scale.ops.attention import AttentionParts, attention_parts

if TYPE_CHECKING:
    from torch import Tensor


def attention_by_blocks(
    q: Tensor, k: Tensor, v: Tensor, self_k: Tensor | None = None, self_v: Tensor | None = None, *, n_block: int = 2
) -> Tensor:
    """Sum of the parts over `n_block` keys at a time and, where given, over the one key that is each cell's own."""
    parts = attention_parts(q, k[:, :0], v[:, :0])
    for start in range(0, k.shape[1], n_block):
        parts = parts + attention_parts(q, k[:, start : start + n_block], v[:, start : start + n_block])
    if self_k is not None and self_v is not None:
        own = attention_parts(*(tensor.reshape(-1, 1, q.shape[2]) for tensor in (q, self_k, self_v)))  # (S B, 1, D)
        parts = parts + AttentionParts(*(field.reshape(*q.shape[:2], -1) for field in own))
    return parts.value().to(v.dtype)
