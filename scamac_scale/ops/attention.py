"""Spatial attention, Eq. (10), and channel attention, Eq. (11): tensors in, tensors out.

The projections that make queries, keys and values live in `nn.synergy`. Everything here has a leading scale axis S.

Eq. (10) mixes cells through a softmax over cells. The forms differ in which cells stand behind `k` and `v`: `batch` takes the
cells of the batch, as printed; `landmark` takes a bank of M fixed cells plus the cell itself, so that a cell's result does not
depend on its batch mates. Over all cells `attention_parts` adds up block by block, in memory that does not grow with them; that
is for inference, see `infer.attention`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch.nn import functional as F

from scamac_scale.errors import ShapeError
from scamac_scale.ops.checks import full_precision, require_dims, require_equal, upcast

if TYPE_CHECKING:
    from torch import Tensor


class SpatialForm(Protocol):
    """What an entry of `SPATIAL_FORMS` is called with."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, self_k: Tensor | None = None, self_v: Tensor | None = None
    ) -> Tensor:
        """Attend; see `landmark_attention` for shapes."""


def _check(q: Tensor, k: Tensor, v: Tensor, self_k: Tensor | None, self_v: Tensor | None) -> None:
    for tensor, what in ((q, "q (S, B, D)"), (k, "k (S, M, D)"), (v, "v (S, M, D)")):
        require_dims(tensor, 3, what)
    if k.shape != v.shape:
        raise ShapeError(f"k {tuple(k.shape)} and v {tuple(v.shape)} must have the same shape (S, M, D).")
    require_equal(q.shape[0], k.shape[0], "scales S of q and k")
    require_equal(q.shape[2], k.shape[2], "latent width D of q and k")
    if (self_k is None) != (self_v is None):
        raise ShapeError("self_k and self_v came one without the other; pass both or neither.")
    if self_k is not None and self_v is not None and not self_k.shape == self_v.shape == q.shape:
        raise ShapeError(
            f"self_k {tuple(self_k.shape)} and self_v {tuple(self_v.shape)} must have the shape of q {tuple(q.shape)}."
        )


def landmark_attention(
    q: Tensor, k: Tensor, v: Tensor, self_k: Tensor | None = None, self_v: Tensor | None = None
) -> Tensor:
    """Softmax attention over a bank of M cells and, where given, the cell itself.

    Parameters
    ----------
    q
        (S, B, D), queries.
    k, v
        (S, M, D), projected keys and values of the bank; M may be 0 where the cell itself is given.
    self_k, self_v
        (S, B, D), projected keys and values of the querying cells themselves; both or neither.

    Returns
    -------
    Tensor
        (S, B, D), a weighted mean of values; dtype of `q`.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(S B M D) time, O(S B M) memory. Row b depends on row b of `q`, `self_k`, `self_v` and on the bank only.

    References
    ----------
    scAMAC Eq. (10), over a bank instead of all cells.
    """
    _check(q, k, v, self_k, self_v)
    q = q * (1.0 / math.sqrt(q.shape[-1]))
    scores = q @ k.mT  # (S, B, M)
    if self_k is None or self_v is None:
        return torch.softmax(scores, dim=-1).to(v.dtype) @ v
    own = (q * self_k).sum(dim=-1, keepdim=True)  # (S, B, 1)
    weights = torch.softmax(torch.cat((scores, own), dim=-1), dim=-1).to(v.dtype)
    n_bank = k.shape[1]
    return weights[..., :n_bank] @ v + weights[..., n_bank:] * self_v


def batch_attention(
    q: Tensor, k: Tensor, v: Tensor, self_k: Tensor | None = None, self_v: Tensor | None = None
) -> Tensor:
    """Softmax attention over the cells of the batch, as printed.

    Parameters
    ----------
    q
        (S, B, D), queries.
    k, v
        (S, M, D), projected keys and values, of the batch's own cells (M = B).
    self_k, self_v
        As in `landmark_attention`; a batch holds its own cells already, so callers leave them out.

    Returns
    -------
    Tensor
        (S, B, D), a weighted mean of values.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(S B M D) time; the fused kernel needs no (B, M) matrix. Depends on the batch mates: kept for comparison with the
    paper.

    References
    ----------
    scAMAC Eq. (10).
    """
    if self_k is not None or self_v is not None:
        return landmark_attention(q, k, v, self_k, self_v)
    _check(q, k, v, None, None)
    # Four dimensions select the fused kernel: scales as the batch, one head.
    return F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1)


class AttentionParts(NamedTuple):
    """Softmax attention over some of the keys; over disjoint keys it adds up to attention over all of them.

    Attributes
    ----------
    maximum
        (S, B, 1), largest score; minus infinity where there is no key.
    total
        (S, B, 1), sum over keys of exp(score - maximum).
    weighted
        (S, B, D), sum over keys of exp(score - maximum) times value.
    """

    maximum: Tensor
    total: Tensor
    weighted: Tensor

    def __add__(self, other: AttentionParts) -> AttentionParts:  # type: ignore[override]  # sums, not concatenated tuples
        """Add both up on the scale of the larger maximum: attention over both sets of keys."""
        maximum = torch.maximum(self.maximum, other.maximum)
        shift = maximum.masked_fill(maximum == -torch.inf, 0.0)  # no keys on either side: all sums are 0
        mine, theirs = torch.exp(self.maximum - shift), torch.exp(other.maximum - shift)
        return AttentionParts(
            maximum, self.total * mine + other.total * theirs, self.weighted * mine + other.weighted * theirs
        )

    def value(self) -> Tensor:
        """(S, B, D), the weighted mean of the values of all keys that were added; float64."""
        return self.weighted / self.total


def attention_parts(q: Tensor, k: Tensor, v: Tensor) -> AttentionParts:
    """Attention over one block of keys, before the division.

    Parameters
    ----------
    q
        (S, B, D), queries.
    k, v
        (S, M, D), keys and values; M may be 0.

    Returns
    -------
    AttentionParts
        float64, so that millions of keys add up; the scores themselves in the precision of the inputs.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(S B M D) time, O(S B M) memory. Differentiable.

    References
    ----------
    scAMAC Eq. (10); the running maximum and sum of Milakov and Gimelshein 2018.
    """
    _check(q, k, v, None, None)
    if k.shape[1] == 0:
        empty = q.new_zeros(*q.shape[:2], 1, dtype=torch.float64)
        return AttentionParts(empty - torch.inf, empty, torch.zeros_like(q, dtype=torch.float64))
    with full_precision(q):
        scores = (upcast(q) * (1.0 / math.sqrt(q.shape[-1]))) @ upcast(k).mT  # (S, B, M)
        maximum = scores.detach().amax(dim=-1, keepdim=True)
        # In place: fresh memory for each step would take longer than the step itself.
        weights = scores.sub_(maximum).exp_()
        # A column of ones beside the values gives the sum of the weights in the same product.
        sums = (weights @ F.pad(upcast(v), (0, 1), value=1.0)).double()
    return AttentionParts(maximum.double(), sums[..., -1:], sums[..., :-1])


SPATIAL_FORMS: dict[str, SpatialForm] = {
    "batch": batch_attention,
    "landmark": landmark_attention,
}

BANK_FORMS = frozenset({"landmark"})
"""The forms whose keys and values come from a bank kept with the model."""


def channel_product(q: Tensor, k: Tensor) -> Tensor:
    """Sum over cells of q^T k, the cells' part of Eq. (11).

    Parameters
    ----------
    q, k
        (S, B, D), shared queries and keys.

    Returns
    -------
    Tensor
        (S, D, D), float32 where the input is half precision. Divide by the number of cells once all are added: the sum
        itself saturates the softmax as N grows.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(S B D^2). Adds up over any cut of the cells; sums over many batches are kept in float64 by the caller.

    References
    ----------
    scAMAC Eq. (11), Q^T K.
    """
    require_dims(q, 3, "q (S, B, D)")
    if q.shape != k.shape:
        raise ShapeError(f"q {tuple(q.shape)} and k {tuple(k.shape)} must have the same shape (S, B, D).")
    with full_precision(q):
        return upcast(q).mT @ upcast(k)


def channel_attention(v: Tensor, mean_product: Tensor) -> Tensor:
    """Mix the latent channels of every cell with weights that all cells share.

    Parameters
    ----------
    v
        (S, B, D), channel values.
    mean_product
        (S, D, D), mean over cells of q^T k.

    Returns
    -------
    Tensor
        (S, B, D); each output channel is a weighted mean of the input channels, since the softmax runs over the rows.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Notes
    -----
    O(S B D^2).

    References
    ----------
    scAMAC Eq. (11), with the mean in place of the sum over cells.
    """
    require_dims(v, 3, "v (S, B, D)")
    n_scales, _, width = v.shape
    if mean_product.shape != (n_scales, width, width):
        raise ShapeError(
            f"mean_product came with shape {tuple(mean_product.shape)}; expected {(n_scales, width, width)} for v "
            f"{tuple(v.shape)}."
        )
    weights = torch.softmax(mean_product * (1.0 / math.sqrt(width)), dim=-2)
    return v @ weights.to(v.dtype)
