"""Raw data as a `CellSource`: normalised and reduced to the chosen genes while it is read."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Self

import numpy as np

from scamac_scale.csr import CsrBlock, Piece, check_rows, gather
from scamac_scale.errors import InputError
from scamac_scale.ingestion.normalise import GeneColumns
from scamac_scale.store.cache import WINDOW_BYTES, ByteCache
from scamac_scale.store.layout import index_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.arrays import IntArray
    from scamac_scale.genes import GeneSpace
    from scamac_scale.ingestion.raw import RawMatrix

_log = logging.getLogger(__name__)

BLOCK_CELLS = 1024
"""Cells that are normalised and kept together."""
RUN_BLOCKS = 4
"""Consecutive blocks that are read at once."""
MIN_SHARE = 0.5
"""Share of the chosen genes that an input must have."""


class NormalisedSource:
    """Raw data, normalised and reduced to the chosen genes while it is read.

    Parameters
    ----------
    raw
        The open input; closed with the source.
    gene_space
        The genes, matched by name.
    is_checked
        Whether all values were checked before; otherwise each block is checked when it is read.
    window_bytes
        Normalised blocks that are kept; a shuffled plan wants room for one window.

    Raises
    ------
    InputError
        If the input has less than half of the chosen genes.

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
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.gene_space = gene_space
        self._raw = raw
        self._columns = GeneColumns.locate(gene_space, raw.gene_names)
        self._is_checked = is_checked
        self._cache = ByteCache(window_bytes)
        self._gene_dtype = index_dtype(len(gene_space.chosen))
        _report_missing(raw.name, self._columns)

    def __enter__(self) -> Self:
        """Return the source itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the input."""
        self.close()

    def close(self) -> None:
        """Close the input and let the kept blocks go."""
        self.forget()
        self._raw.close()

    def forget(self) -> None:
        """Let the kept blocks go; they are read again when they are wanted."""
        self._cache.clear()

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
    def source_rows(self) -> NDArray[np.int64]:
        """(N,) row in the input of each cell: its own."""
        return np.arange(self.n_cells, dtype=np.int64)

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
        rows = check_rows(rows, self.n_cells)
        return gather(rows, BLOCK_CELLS, self._blocks, len(self.gene_names))

    def _blocks(self, blocks: NDArray[np.int64]) -> Iterator[Piece]:
        """Give normalised blocks in order, reading runs of consecutive ones that are not kept."""
        missing = set(self._cache.missing(blocks.tolist()))
        fresh: dict[int, Piece] = {}
        for block in blocks.tolist():
            found = fresh.pop(block, None) or self._cache.get(block)
            if found is None:
                run = [block]
                while len(run) < RUN_BLOCKS and run[-1] + 1 in missing:
                    run.append(run[-1] + 1)
                fresh = self._read_run(run)
                found = fresh.pop(block)
            yield found

    def _read_run(self, run: list[int]) -> dict[int, Piece]:
        start, stop = run[0] * BLOCK_CELLS, min((run[-1] + 1) * BLOCK_CELLS, self.n_cells)
        block = self._raw.read_block(start, stop)
        if not self._is_checked:
            self._check(block, start)
        values = self._columns.normalised(block)
        found: dict[int, Piece] = {}
        for number in run:
            part = values[number * BLOCK_CELLS - start : (number + 1) * BLOCK_CELLS - start]
            found[number] = (part.indptr.astype(np.int64), part.indices.astype(self._gene_dtype), part.data)
            self._cache.put(number, found[number])
        return found

    def _check(self, block: sparse.csr_matrix, start: int) -> None:
        is_wrong = ~np.isfinite(block.data) | (block.data < 0)
        what = "is not a finite number of at least 0"
        if self.gene_space.kind == "counts" and not is_wrong.any():
            is_wrong = block.data != np.rint(block.data)
            what = "is not a whole number, and the model was fitted to counts"
        if is_wrong.any():
            entry = int(np.argmax(is_wrong))
            cell = start + int(np.searchsorted(block.indptr, entry, side="right")) - 1
            gene = self._raw.gene_names[block.indices[entry]]
            raise InputError(
                f"{self._raw.name}: {self._raw.matrix} holds {block.data[entry]} for cell {self.obs.index[cell]!r} and gene "
                f"{gene!r}; it {what}. Name the matrix of raw values with ingest.matrix."
            )


def _report_missing(name: str, columns: GeneColumns) -> None:
    missing, n_chosen = columns.missing_chosen, len(columns.space.chosen)
    if not missing:
        return
    share = 1 - len(missing) / n_chosen
    if share < MIN_SHARE:
        raise InputError(
            f"{name} has {n_chosen - len(missing)} of the {n_chosen} genes of the model ({share:.0%}); at least "
            f"{MIN_SHARE:.0%} are needed. Missing are {', '.join(missing[:5])}, ...: check that both name genes alike "
            "(symbols or identifiers, upper or lower case)."
        )
    _log.warning(
        "%s lacks %d of the %d genes of the model (%s%s); they count as zeros",
        name,
        len(missing),
        n_chosen,
        ", ".join(missing[:5]),
        ", ..." if len(missing) > 5 else "",
    )
