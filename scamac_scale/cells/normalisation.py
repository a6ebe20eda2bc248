"""From raw values to what the network's input is made of: ``log1p(x * target_sum / total)``.

The one home of that formula. It is compiled, so that a reader may apply it while it gathers; every source calls it, so
that the same cell has the same bits wherever it is read from. Which genes count for the total, and which are kept, is not
decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import ShapeError
from scamac_scale.host.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray


TABLE = 16
"""Counts below this are looked up in a table of the cell: 99 % of the values of an atlas, a third of the time."""


def cell_scale(totals: NDArray[np.float64], target_sum: float) -> NDArray[np.float64]:
    """Factor that brings each cell to the target.

    Parameters
    ----------
    totals
        (B,) sum of each cell over the filtered genes, non-negative.
    target_sum
        Total that every cell is scaled to.

    Returns
    -------
    ndarray
        (B,) ``target_sum / total``; 0 for a cell without counts, which so stays zeros.
    """
    totals = np.asarray(totals, dtype=np.float64)
    return np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)


@compiled
def log_scaled(value: Any, scale: Any) -> Any:  # pragma: no cover  compiled
    """``log1p(value * scale)``, computed in float64, returned in float32; callable from other kernels."""
    return np.float32(np.log1p(np.float64(value) * scale))


@compiled
def fill_table(scale: Any, table: Any) -> None:  # pragma: no cover  compiled
    """Set ``table[count]`` to the value of each count below `TABLE` for a cell; callable from other kernels."""
    for count in range(TABLE):
        table[count] = log_scaled(count, scale)


@compiled
def _normalise(indptr: Any, data: Any, scale: Any, out: Any) -> None:  # pragma: no cover  compiled
    table = np.empty(TABLE, np.float32)
    for row in range(indptr.size - 1):
        fill_table(scale[row], table)
        for at in range(indptr[row], indptr[row + 1]):
            value = data[at]
            if 0 <= value < TABLE and value == np.int64(value):
                out[at] = table[np.int64(value)]
            else:
                out[at] = log_scaled(value, scale[row])


def normalise_values(indptr: NDArray[Any], data: NDArray[Any], scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """Log-normalise the values of sparse rows.

    Parameters
    ----------
    indptr
        (B + 1,) integers; row ``i`` lies at ``indptr[i]:indptr[i + 1]`` of `data`.
    data
        (nnz,) raw values of any real type, non-negative.
    scale
        (B,) from `cell_scale`.

    Returns
    -------
    ndarray
        (nnz,) float32.

    Raises
    ------
    ShapeError
        If the lengths do not fit each other.
    """
    if indptr.size != scale.size + 1 or indptr[-1] > data.size:
        raise ShapeError(
            f"{indptr.size} row pointers up to {indptr[-1]} for {scale.size} scales and {data.size} values; "
            "expected one pointer more than scales, and none past the values."
        )
    out = np.empty(data.size, np.float32)
    _normalise(indptr, data, scale, out)
    return out
