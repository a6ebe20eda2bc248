"""Arrays of ``obsm``, read by blocks of cells from an h5ad, an AnnData zarr or memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.raw import blamed, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from scamac_scale.cells.arrays import FloatArray

BLOCK_VALUES = 2**22
"""Values of a block, 16 MiB of float32; more where one row of chunks has more."""


@dataclass(frozen=True, eq=False)
class ObsmArray:
    """A dense array of N cells by D columns; a context manager.

    Attributes
    ----------
    name
        What it is called in messages.
    values
        NumPy, h5py or zarr array (N, D).
    close
        Closes the file.
    """

    name: str
    values: Any  # Any: the three have no type in common
    close: Callable[[], None] = nothing

    def __enter__(self) -> ObsmArray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        n_cells, width = self.values.shape
        return int(n_cells), int(width)

    def blocks(self) -> Iterator[tuple[int, FloatArray]]:
        """Read all cells once, in order.

        Yields
        ------
        tuple of int, FloatArray
            Row of the first cell, and (B, D) values; whole rows of chunks, so that none is read twice.

        Raises
        ------
        InputError
            If the file is damaged, or a value is not finite; names the first cell.
        """
        n_cells, width = self.shape
        chunk = int((getattr(self.values, "chunks", None) or (1,))[0])
        size = max(1, BLOCK_VALUES // width // chunk) * chunk
        for start in range(0, n_cells, size):
            with blamed(self.name, f"rows from {start:,} on"):
                block = np.asarray(self.values[start : start + size])
            wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if wrong.size:
                raise InputError(
                    f"{self.name} holds values that are not finite, first at cell number {start + int(wrong[0]):,} (from 0); "
                    "predict again, or leave these cells out."
                )
            yield start, block


def dense_array(values: Any, name: str, close: Callable[[], None] = nothing) -> ObsmArray:  # Any: whatever obsm holds
    """Take what lies in ``obsm`` as an array.

    Parameters
    ----------
    values
        Of the file, or of memory.
    name
        What it is called in messages.
    close
        Closes the file.

    Returns
    -------
    ObsmArray
        Nothing is read yet.

    Raises
    ------
    InputError
        If it is sparse, a table, not two-dimensional, empty, or does not hold real numbers.
    """
    is_array = type(values).__module__.split(".")[0] in ("numpy", "h5py", "zarr") and hasattr(values, "dtype")
    if not is_array or len(values.shape) != 2 or values.dtype.kind not in "fiu":
        what = f"{values.dtype} of shape {tuple(values.shape)}" if is_array else f"a {type(values).__name__}"
        raise InputError(f"{name} is {what}; expected a dense array of real numbers, cells by columns.")
    if 0 in values.shape:
        raise InputError(f"{name} is empty, of shape {tuple(values.shape)}; expected cells by columns.")
    return ObsmArray(name, values, close)
