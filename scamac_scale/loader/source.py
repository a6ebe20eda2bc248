"""What the loader reads from: any object that satisfies `CellSource`.

The loader knows nothing of files. `scamac_scale.sources` opens stores, AnnData files and matrices in memory behind this
protocol; a new source is one class with these members, proved by the contract tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from scamac_scale.csr import CsrBlock, check_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.arrays import IntArray

__all__ = ["CellSource", "CsrBlock", "check_rows"]


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
        """Bytes of all cells as `read` returns them: tells how many fit in memory."""

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
