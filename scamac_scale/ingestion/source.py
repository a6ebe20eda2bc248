"""Raw data as a `CellSource`: normalised and reduced to the chosen genes while it is read."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from scamac_scale.cells.buffer import RowBuffer, near_runs, read_rows, rows_of
from scamac_scale.cells.csr import CsrBlock, csr_bytes
from scamac_scale.cells.tech_batches import WithTechBatches
from scamac_scale.errors import InputError
from scamac_scale.ingestion.compare import compare
from scamac_scale.ingestion.kinds import largest_log
from scamac_scale.ingestion.names import matched_names, name_hint
from scamac_scale.ingestion.normalise import GeneColumns
from scamac_scale.ingestion.raw import read_blocks
from scamac_scale.store.layout import index_dtype

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from types import TracebackType

    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.remote.stamps import Stamp

_log = logging.getLogger(__name__)

READ_CELLS = 4096
"""Cells that are read at once at most."""
GAP_CELLS = 1024
"""Runs that are no farther apart are read together: files are cut into chunks of about so many cells."""
MIN_SHARE = 0.5
"""Share of the chosen genes that an input must have."""


class NormalisedSource(WithTechBatches):
    """Raw data, normalised and reduced to the chosen genes while it is read.

    Parameters
    ----------
    raw
        The open input; closed with the source.
    gene_space
        The genes, matched by name.
    is_checked
        Whether all values were checked before; otherwise each block is checked when it is read.
    n_values
        Values above zero of the chosen genes, where that is known; otherwise `csr_bytes` counts them.
    totals
        (N,) sum of each cell over the filtered genes, where that is known.
    batch_key
        Columns of `obs` with the technical batches, if any were named.
    accepted
        Names of `config.Accept`: in what the input may differ from the fit.

    Attributes
    ----------
    batch_key, totals
        As they were given.

    Raises
    ------
    InputError
        If the input has less than half of the chosen genes, or, unless all values were checked before, some of its cells show that it
        differs from the fit, see `compare`.

    Notes
    -----
    Reading is safe from several threads.
    """

    def __init__(
        self,
        raw: RawMatrix,
        gene_space: GeneSpace,
        *,
        is_checked: bool = False,
        n_values: int | None = None,
        totals: NDArray[np.float64] | None = None,
        batch_key: str | None = None,
        accepted: Collection[str] = (),
    ) -> None:
        self.gene_space = gene_space
        self.batch_key = batch_key
        self.totals = totals
        self._raw = raw
        self._columns = GeneColumns.locate(gene_space, matched_names(gene_space, raw.gene_names, accepted))
        self._is_checked = is_checked
        self._accepted = accepted
        self._n_values = n_values
        self._gene_dtype = index_dtype(len(gene_space.chosen))
        if len(raw.parts) < 2:  # each of several was compared when it was opened
            compare_with_fit(raw, gene_space, accepted, is_checked=is_checked)

    def __enter__(self) -> Self:
        """Return the source itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the input."""
        self.close()

    @property
    def marks(self) -> list[object]:
        """Of each input that lies somewhere: bytes and time of a file, bytes and etag of an object; of a folder a digest of these."""
        return [[stamp.n_bytes, stamp.changed] for stamp in self.stamps]

    def close(self) -> None:
        """Close the input."""
        self._raw.close()

    @property
    def n_cells(self) -> int:
        """Number of cells N."""
        return self._raw.n_cells

    @property
    def gene_names(self) -> Sequence[str]:
        """The G chosen genes, in the order of the columns."""
        return self.gene_space.chosen

    @property
    def missing_genes(self) -> tuple[str, ...]:
        """Chosen genes that the input lacks; they are zeros."""
        return self._columns.missing_chosen

    @property
    def obs(self) -> pd.DataFrame:
        """Columns of the input, one row per cell."""
        return self._raw.obs

    @property
    def stamps(self) -> tuple[Stamp, ...]:
        """Looks at its files before they were opened; none of values in memory."""
        return self._raw.stamps

    @property
    def source_rows(self) -> NDArray[np.int64]:
        """(N,) row in the input of each cell: its own."""
        return np.arange(self.n_cells, dtype=np.int64)

    @cached_property
    def csr_bytes(self) -> int:
        """Bytes of all cells as `read` returns them; takes a pass over the input where nobody counted before."""
        n_values = self._n_values
        if n_values is None:
            blocks = read_blocks(self._raw, READ_CELLS, "counting values")
            n_values = sum(int(np.count_nonzero(self._columns.raw_values(block).data)) for _, block in blocks)
        return csr_bytes(self.n_cells, n_values, self._gene_dtype)

    def read(self, rows: IntArray) -> CsrBlock:
        """Read cells.

        Parameters
        ----------
        rows
            (B,) integers, in any order, repeats allowed.

        Returns
        -------
        CsrBlock
            (B, G) log-normalised values, in the order of `rows`, genes ascending.

        Raises
        ------
        PlanError
            If a row is not in the input.
        InputError
            If the input is damaged, or holds values that do not fit the gene space.
        """
        return read_rows(self.load, rows, self.n_cells, len(self.gene_names))

    def load(self, starts: NDArray[np.int64], stops: NDArray[np.int64], into: RowBuffer) -> None:
        """Load runs of cells, normalised.

        Parameters
        ----------
        starts, stops
            (R,) first row of each run, and the one after its last; within the input.
        into
            Receives the runs, one after the other.

        Raises
        ------
        InputError
            If the input is damaged, or holds values that do not fit the gene space.
        """
        blocks = [self._read(*runs) for runs in near_runs(starts, stops, GAP_CELLS, READ_CELLS)]
        lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(block.indptr) for block in blocks)])
        n_values = int(lengths.sum())
        into.allot(lengths.size - 1, n_values, self._gene_dtype, np.dtype(np.float32), is_scaled=False)
        np.cumsum(lengths, out=into.indptr)
        at = 0
        for block in blocks:
            into.genes[at : at + block.nnz] = block.indices
            into.values[at : at + block.nnz] = block.data
            at += block.nnz

    @property
    def load_bytes(self) -> int:
        """Bytes of all cells as `load` gives them."""
        return self.csr_bytes

    @property
    def resident(self) -> None:
        """None: cells are normalised as they are loaded, and not kept."""
        return

    def _read(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> sparse.csr_matrix:
        """Read what spans some runs that lie near each other, and pick their cells."""
        first = int(starts[0])
        block = self._raw.read_block(first, int(stops[-1]))
        if not self._is_checked:
            self._check(block, first)
        if block.shape[0] > (stops - starts).sum():
            block = block[rows_of(starts, stops) - first]
        return self._columns.normalised(block)

    def _check(self, block: sparse.csr_matrix, start: int) -> None:
        is_wrong = ~np.isfinite(block.data) | (block.data < 0)
        what = "is not a finite number of at least 0"
        if self.gene_space.kind == "counts" and "values" not in self._accepted and not is_wrong.any():
            is_wrong = block.data != np.rint(block.data)
            what = "is not a whole number, and the model was fitted to counts"
        if self.gene_space.kind == "log" and "values" not in self._accepted and not is_wrong.any():
            values = self.gene_space.values
            is_wrong = block.data > largest_log(None if values is None else values.base)
            what = "is no logarithm, and the model was fitted to log values"
        if is_wrong.any():
            entry = int(np.argmax(is_wrong))
            cell = start + int(np.searchsorted(block.indptr, entry, side="right")) - 1
            gene = self._raw.gene_names[block.indices[entry]]
            raise InputError(
                f"{self._raw.name}: {self._raw.matrix} holds {block.data[entry]} for cell {self._raw.cell_named(cell)} and gene "
                f"{gene!r}; it {what}. Name the matrix of raw values with ingest.matrix."
            )


def compare_with_fit(
    raw: RawMatrix, gene_space: GeneSpace, accepted: Collection[str], *, is_checked: bool = False
) -> None:
    """Compare an input with what a model was fitted to.

    Parameters
    ----------
    raw
        Open.
    gene_space, accepted, is_checked
        As of `NormalisedSource`.

    Raises
    ------
    InputError
        If it has less than half of the chosen genes; or, unless it is checked, differs from the fit, see `compare`.
    """
    names = matched_names(gene_space, raw.gene_names, accepted)
    columns = GeneColumns.locate(gene_space, names)
    _report_missing(raw, columns)
    if not is_checked:
        compare(raw, columns, names, accepted)


def _report_missing(raw: RawMatrix, columns: GeneColumns) -> None:
    name, missing, n_chosen = raw.name, columns.missing_chosen, len(columns.space.chosen)
    if not missing:
        return
    share = 1 - len(missing) / n_chosen
    if share < MIN_SHARE:
        raise InputError(
            f"{name} has {n_chosen - len(missing)} of the {n_chosen} genes of the model ({share:.0%}); at least "
            f"{MIN_SHARE:.0%} are needed. Missing are {', '.join(missing[:5])}, ...: check that both name genes alike "
            f"(symbols or identifiers, upper or lower case). {name_hint(columns.space.chosen, raw)}"
        )
    _log.warning(
        "%s lacks %d of the %d genes of the model (%s%s); they count as zeros, so clusters can shift",
        name,
        len(missing),
        n_chosen,
        ", ".join(missing[:5]),
        ", ..." if len(missing) > 5 else "",
    )
