"""What the loader reads from: any object that satisfies `CellSource`.

The loader knows nothing of files. `scamac_scale.sources` opens stores, AnnData files and matrices in memory behind this
protocol; a new source is one class with these members, proved by the contract tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from scamac_scale.cells.buffer import RowBuffer
from scamac_scale.cells.csr import CsrBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray

__all__ = ["CellSource", "CsrBlock", "RowBuffer"]


def levels_of(source: CellSource, rows: IntArray) -> torch.Tensor | None:
    """(B, C) int64 levels of the technical batches of some cells; None where the source has none."""
    import torch

    levels = source.levels
    return None if levels is None else torch.from_numpy(levels[rows]).long()


@runtime_checkable
class CellSource(Protocol):
    """Cells by chosen genes, log-normalised, read by row.

    A source is lazy (nothing near the whole matrix is held unless a cache was asked for) and safe to read from several
    threads at once.
    """

    @property
    def n_cells(self) -> int:
        """Number of cells N."""

    @property
    def gene_names(self) -> Sequence[str]:
        """The G chosen genes, in the order of the columns."""

    @property
    def csr_bytes(self) -> int:
        """Bytes of all cells as `read` returns them: the same for every kind of source that holds the same cells."""

    @property
    def load_bytes(self) -> int:
        """Bytes of all cells as `load` gives them: tells how many fit in memory."""

    @property
    def resident(self) -> RowBuffer | None:
        """All N cells in memory, as `load` gives them, where the source holds them; else None.

        The feed then takes batches from it without loading windows.
        """

    @property
    def levels(self) -> IntArray | None:
        """(N, C) int32 levels of the technical batches of all cells, numbered through; None where there are none."""

    def load(self, starts: NDArray[np.int64], stops: NDArray[np.int64], into: RowBuffer) -> None:
        """Load runs of cells into reused memory, for the feed.

        Parameters
        ----------
        starts, stops
            (R,) first row of each run, and the one after its last; runs lie within the source and are not empty.
        into
            Receives the rows of the runs, one run after the other; its genes are below G.
        """

    def read(self, rows: IntArray) -> CsrBlock:
        """Read cells.

        Parameters
        ----------
        rows
            (B,) integers, in any order, repeats allowed.

        Returns
        -------
        CsrBlock
            (B, G) log-normalised values, in the order of `rows`.

        Raises
        ------
        PlanError
            If a row lies outside 0 to N - 1.
        """
