"""Reads a training store: any cells, log-normalised, without holding the matrix.

`StoreReader` satisfies the loader's `CellSource`. Chunks are read whole, checked (crc32c, gene range), kept for a while,
and the cells asked for are gathered from them by a compiled kernel.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zarr
from zarr.storage import LocalStore

from scamac_scale.csr import RUN_CELLS, WINDOW_BYTES, CsrBlock, check_rows, copy_rows, csr_bytes
from scamac_scale.errors import StoreError
from scamac_scale.genes import GeneSpace
from scamac_scale.store import layout
from scamac_scale.store.cache import ByteCache
from scamac_scale.values import cell_scale, normalise_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    import pandas as pd
    from numpy.typing import NDArray
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

_RUN_CHUNKS = 16  # consecutive chunks read by one call to zarr
_MAX_SPREAD = 3.0  # a chunk holds up to twice RUN_CELLS, but for cells with a handful of values
_METADATA_NAMES = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})


class StoreReader:
    """A training store, open for reading.

    Parameters
    ----------
    path
        Folder of the store.
    window_bytes
        Cells that stay at hand, as CSR: two windows of a shuffled plan. Kept are the chunks in which they lie.

    Attributes
    ----------
    path
        Folder of the store.
    n_cells, n_genes, n_values
        Cells, chosen genes, stored values.
    gene_space
        The genes, and how values are normalised.

    Raises
    ------
    StoreError
        If there is no store, it is incomplete, damaged or of another version.

    Notes
    -----
    Memory is 16 bytes per cell and the kept chunks: 1 to 1.5 times `window_bytes` for counts below 256, at most 3 times for
    float32 values, since chunks reach beyond the runs of cells that a window is made of. Reading is safe from several threads; not after a fork.
    """

    def __init__(self, path: str | Path, *, window_bytes: int = WINDOW_BYTES) -> None:
        self.path = Path(path)
        record = layout.read_record(self.path)
        self.n_cells, self.n_genes, self.n_values = record.n_cells, record.n_genes, record.n_values
        with self._reading():
            self._root = zarr.open_group(_StrictStore(self.path, read_only=True), mode="r")
            self._about = {key: self._text(key) for key in ("gene_space", "config", "inputs")}
            self.gene_space = GeneSpace.from_dict(self._json("gene_space"))
            self._indptr = self._array("X/indptr", self.n_cells + 1)[:]
            self._data = self._array("X/data", self.n_values)
            self._indices = self._array("X/indices", self.n_values)
            self._scale = self._read_scale()
        self._chunk = int(self._data.chunks[0])
        self._cache = ByteCache(self._kept_bytes(window_bytes))
        self._check_arrays()

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the kept chunks go."""
        self.close()

    def close(self) -> None:
        """Let the kept chunks go; no file stays open between reads."""
        self.forget()

    def forget(self) -> None:
        """Let the kept chunks go; they are read again when they are wanted."""
        self._cache.clear()

    @property
    def gene_names(self) -> Sequence[str]:
        """The G chosen genes, in the order of the columns."""
        return self.gene_space.chosen

    @property
    def missing_genes(self) -> tuple[str, ...]:
        """Chosen genes that the input lacks: none."""
        return ()

    @property
    def csr_bytes(self) -> int:
        """Bytes of all cells as `read` returns them."""
        return csr_bytes(self.n_cells, self.n_values, layout.index_dtype(self.n_genes))

    @property
    def config(self) -> dict[str, Any]:
        """The ingest settings of the store."""
        return dict(self._json("config"))

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """Fingerprint of each input."""
        return list(self._json("inputs"))

    @property
    def obs(self) -> pd.DataFrame:
        """Columns of the input, one row per cell of the store; read anew at every call."""
        from anndata.io import read_elem

        with self._reading():
            frame: pd.DataFrame = read_elem(self._root["obs"])
        return frame.drop(columns=[layout.TOTAL, layout.SOURCE_ROW])

    @property
    def source_rows(self) -> NDArray[np.int64]:
        """(N,) row in the input of each cell of the store; read anew at every call."""
        with self._reading():
            rows: NDArray[np.int64] = self._array(f"obs/{layout.SOURCE_ROW}", self.n_cells)[:].astype(np.int64)
        return rows

    def read(self, rows: NDArray[Any]) -> CsrBlock:
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
            If a row is not in the store.
        StoreError
            If a chunk is missing or damaged.

        Notes
        -----
        Reads each chunk that holds a wanted cell once, or not at all where it is still kept.
        """
        rows = check_rows(rows, self.n_cells)
        indptr = np.zeros(rows.size + 1, np.int64)
        np.cumsum(self._indptr[rows + 1] - self._indptr[rows], out=indptr[1:])
        raw = np.empty(indptr[-1], self._data.dtype)
        genes = np.empty(indptr[-1], self._indices.dtype)
        self._gather(rows, indptr, raw, genes)
        if self._scale is None:
            values = raw.astype(np.float32, copy=False)
        else:
            values = normalise_values(indptr, raw, self._scale[rows])
        return CsrBlock(indptr, genes, values, self.n_genes)

    def _gather(self, rows: NDArray[np.int64], indptr: NDArray[np.int64], raw: Any, genes: Any) -> None:
        order = np.argsort(rows, kind="stable")
        order = order[np.diff(indptr)[order] > 0]
        starts, stops = self._indptr[rows[order]], self._indptr[rows[order] + 1]
        targets = indptr[order]
        firsts, lasts = starts // self._chunk, (stops - 1) // self._chunk
        chunks = _covered(firsts, lasts)
        # rows whose values reach into a chunk are neighbours, since both bounds ascend
        lows = np.searchsorted(lasts, chunks, side="left")
        highs = np.searchsorted(firsts, chunks, side="right")
        for at, (data, indices) in enumerate(self._cache.through(chunks, self._read_run, _RUN_CHUNKS)):
            part = slice(lows[at], highs[at])
            offset = chunks[at] * self._chunk
            copy_rows(offset, data, indices, starts[part], stops[part], targets[part], raw, genes)

    def _kept_bytes(self, window_bytes: int) -> int:
        """Bytes of the chunks, as stored, that hold `window_bytes` of cells, as read, in runs of `RUN_CELLS`."""
        index_bytes = self._indices.dtype.itemsize
        narrower = (self._data.dtype.itemsize + index_bytes) / (4 + index_bytes)
        chunk_cells = self._chunk * self.n_cells / max(self.n_values, 1)
        return int(window_bytes * narrower * min(1 + chunk_cells / RUN_CELLS, _MAX_SPREAD))

    def _read_run(self, run: list[int]) -> dict[int, tuple[NDArray[Any], ...]]:
        start, stop = run[0] * self._chunk, min((run[-1] + 1) * self._chunk, self.n_values)
        with self._reading(f"X/data or X/indices, chunks {run[0]} to {run[-1]}"):
            data, indices = self._data[start:stop], self._indices[start:stop]
        if int(indices.max()) >= self.n_genes:
            raise StoreError(f"{self.path}/X/indices holds a gene beyond {self.n_genes - 1}; {_REMAKE}.")
        found: dict[int, tuple[NDArray[Any], ...]] = {}
        for chunk in run:
            bounds = slice(chunk * self._chunk - start, (chunk + 1) * self._chunk - start)
            # copies, so that a kept chunk does not keep its whole run in memory
            found[chunk] = (data[bounds].copy(), indices[bounds].copy()) if len(run) > 1 else (data, indices)
        return found

    def _read_scale(self) -> NDArray[np.float64] | None:
        if self.gene_space.target_sum is None:
            return None
        totals = self._array(f"obs/{layout.TOTAL}", self.n_cells)[:]
        return cell_scale(totals, self.gene_space.target_sum)

    def _array(self, name: str, size: int) -> Any:  # Any: a zarr array
        array = self._root[name]
        if not isinstance(array, zarr.Array) or array.shape != (size,):
            raise StoreError(f"{self.path}/{name} is not the array of {size} that the commit record names; {_REMAKE}.")
        return array

    def _check_arrays(self) -> None:
        indptr = self._indptr
        if indptr[0] != 0 or indptr[-1] != self.n_values or (np.diff(indptr) < 0).any():
            raise StoreError(f"{self.path}/X/indptr does not describe rows; {_REMAKE}.")
        if len(self.gene_space.chosen) != self.n_genes:
            raise StoreError(
                f"{self.path} names {len(self.gene_space.chosen)} genes but holds {self.n_genes}; {_REMAKE}."
            )

    def _text(self, key: str) -> str:
        array = self._root[f"uns/scamac/{key}"]
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self.path}/uns/scamac/{key} is not a text; {_REMAKE}.")
        return str(array[()])

    def _json(self, key: str) -> Any:  # Any: what JSON holds
        return json.loads(self._about[key])

    @contextmanager
    def _reading(self, what: str = "the store") -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise StoreError(f"{self.path}: {what} is damaged ({error}); {_REMAKE}.") from error


_REMAKE = "write the store again with `scamac-scale ingest`"


class _StrictStore(LocalStore):
    """Files of a store; a missing chunk is an error, where zarr would read zeros."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and key.rpartition("/")[2] not in _METADATA_NAMES:
            raise StoreError(f"{self.root / key} is missing; {_REMAKE}.")
        return found


def _covered(firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every chunk from a first to its last, each once, ascending; both bounds ascend."""
    lengths = lasts - firsts + 1
    steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.unique(np.repeat(firsts, lengths) + steps)
