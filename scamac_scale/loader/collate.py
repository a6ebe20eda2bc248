"""Sparse rows to dense rows: the one compiled kernel of the loader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from scamac_scale.errors import ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.csr import CsrBlock


@numba.njit(nogil=True, cache=True)
def _fill(indptr: Any, indices: Any, data: Any, out: Any) -> None:  # pragma: no cover  compiled
    for row in range(indptr.size - 1):
        out[row, :] = 0.0
        for at in range(indptr[row], indptr[row + 1]):
            out[row, indices[at]] += data[at]


def densify(block: CsrBlock, out: NDArray[np.float32]) -> None:
    """Write sparse rows into a dense array that is reused from batch to batch.

    Parameters
    ----------
    block
        (B, G) cells; its indices were checked when it was made.
    out
        (B, G) float32, C order; overwritten, zeros included.

    Raises
    ------
    ShapeError
        If `out` does not fit.

    Notes
    -----
    O(B G + nnz), without the interpreter lock. The first call in a new installation compiles for about a second; the
    result is kept on disk.
    """
    if out.shape != (block.n_cells, block.n_genes) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ShapeError(
            f"A buffer {out.shape} of {out.dtype} for {block.n_cells} cells by {block.n_genes} genes; "
            "expected that shape, float32, C order."
        )
    _fill(block.indptr, block.indices, block.data, out)
