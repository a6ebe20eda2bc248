"""Rows on their way into a store: three arrays in the types that it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

Rows = tuple["NDArray[np.int64]", "NDArray[Any]", "NDArray[Any]"]
"""Values per row, genes, values."""


class RowForm(NamedTuple):
    """What rows of a store are made of: its genes, and the types of values and genes."""

    n_genes: int
    value_dtype: np.dtype[Any]
    gene_dtype: np.dtype[Any]


def tidied(block: sparse.csr_matrix, form: RowForm) -> Rows:
    """Check a block and bring it into the types of a store; a pure function.

    Parameters
    ----------
    block
        (cells, G) raw values, chosen genes only.
    form
        Of the store.

    Raises
    ------
    InputError
        If the block does not fit, or holds a value that the type cannot hold.
    """
    if block.shape[1] != form.n_genes:
        raise InputError(f"A block of {block.shape[1]} genes for a store of {form.n_genes}.")
    if not block.has_canonical_format or (block.data == 0).any():
        block = block.copy()
        block.sum_duplicates()  # sorts, too
        block.eliminate_zeros()
    data = block.data.astype(form.value_dtype)
    if form.value_dtype.kind == "u" and not np.array_equal(data, block.data):
        raise InputError(
            f"A block holds {block.data.max()}, which is no count that {form.value_dtype} can hold; "
            "the input has changed since it was checked."
        )
    return np.diff(block.indptr).astype(np.int64), block.indices.astype(form.gene_dtype), data
