"""An AnnData zarr of counts that is written by runs of cells: whole chunks go to disk, memory holds one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

CHUNK_CELLS = 4096
"""Cells in a chunk on disk, on average; memory grows with it."""
MIN_CHUNK_CELLS = 1024
"""Of arrays that have one number a cell."""


@dataclass(frozen=True, eq=False)
class CellRun:
    """A run of cells: the three arrays of CSR, and the code of each cell in each column."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.float32]
    codes: Mapping[str, NDArray[np.int64]]

    @property
    def n_cells(self) -> int:
        """Cells of the run."""
        return len(self.indptr) - 1


@dataclass(frozen=True, eq=False)
class AtlasFrame:
    """What an atlas has besides its cells.

    Attributes
    ----------
    var
        (G rows) the genes.
    categories
        Columns of obs, and the names that their codes stand for.
    about
        What ``uns["simulation"]`` says.
    n_cells
        Of the whole atlas: says how wide its numbers must be.
    first
        Number of its first cell, for the names.
    """

    var: pd.DataFrame
    categories: Mapping[str, Sequence[str]]
    about: Mapping[str, Any]
    n_cells: int
    first: int = 0


class AtlasWriter:
    """Writes an atlas; `append` runs of cells, then `finish`.

    Parameters
    ----------
    folder
        Empty; becomes the zarr.
    frame
        What is not of a cell.
    """

    def __init__(self, folder: Path, frame: AtlasFrame) -> None:
        import zarr

        self._root = zarr.open_group(str(folder), mode="w", zarr_format=3)
        self._frame = frame
        # one type for both, or scikit-learn refuses what anndata reads
        is_narrow = frame.n_cells * len(frame.var) < 2**31
        self._index_dtype = np.dtype(np.int32 if is_narrow else np.int64)
        self._n_cells = 0
        self._n_values = 0
        self._arrays: dict[str, Any] = {}  # zarr arrays
        self._pending: dict[str, list[NDArray[Any]]] = {}

    def append(self, cells: CellRun) -> None:
        """Take a run of cells."""
        if not self._arrays:
            import zarr

            with zarr.config.set({"array.write_empty_chunks": True}):  # then a chunk that is missing was lost
                self._create(cells)
        first = self._frame.first + self._n_cells
        self._n_cells += cells.n_cells
        names = np.array([_cell_name(first + i) for i in range(cells.n_cells)], dtype=object)
        pieces: dict[str, NDArray[Any]] = {
            "X/indptr": cells.indptr[1:] + self._n_values,
            "X/indices": cells.indices,
            "X/data": cells.data,
            "obs/_index": names,
        }
        for column, categories in self._frame.categories.items():
            pieces[f"obs/{column}/codes"] = cells.codes[column].astype(np.int8 if len(categories) < 128 else np.int32)
        self._n_values += len(cells.data)
        for name, piece in pieces.items():
            self._pending.setdefault(name, []).append(piece)
            if sum(map(len, self._pending[name])) >= self._arrays[name].chunks[0]:
                self._flush(name)

    def finish(self) -> None:
        """Write what is left, and the shape."""
        for name in self._arrays:
            self._flush(name, is_last=True)
        self._root["X"].attrs["shape"] = [self._n_cells, len(self._frame.var)]

    def _create(self, first: CellRun) -> None:
        import pandas as pd
        from anndata.io import write_elem

        none = pd.Index([], dtype=object)
        columns = {
            name: pd.Categorical([], categories=list(categories)) for name, categories in self._frame.categories.items()
        }
        self._root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        plain = {"shards": None}
        write_elem(self._root, "var", self._frame.var, dataset_kwargs=plain)
        write_elem(self._root, "uns", {"simulation": dict(self._frame.about)}, dataset_kwargs=plain)
        for name in ("obsm", "obsp", "varm", "varp", "layers"):
            write_elem(self._root, name, {}, dataset_kwargs=plain)
        write_elem(self._root, "obs", pd.DataFrame(columns, index=none), dataset_kwargs=plain)
        self._root.create_group("X").attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        values = max(1024, len(first.data) * CHUNK_CELLS // first.n_cells)
        cells = max(MIN_CHUNK_CELLS, 16 * CHUNK_CELLS)
        self._grow_from("X/indptr", self._index_dtype, cells)
        self._grow_from("X/indices", self._index_dtype, values)
        self._grow_from("X/data", np.dtype(np.float32), values)
        self._grow_from("obs/_index", None, cells)
        for name in columns:
            self._grow_from(f"obs/{name}/codes", None, cells)
        self._pending["X/indptr"] = [np.zeros(1, dtype=np.int64)]

    def _grow_from(self, name: str, dtype: np.dtype[Any] | None, chunk: int) -> None:
        """Make an empty array that grows; without a type, in place of the one that anndata wrote for no cells."""
        attributes: dict[str, Any] = {}
        if dtype is None:
            written: Any = self._root[name]  # a zarr array
            dtype, attributes = written.dtype, dict(written.attrs)
        self._arrays[name] = self._root.create_array(
            name, shape=(0,), dtype=dtype, chunks=(chunk,), attributes=attributes, overwrite=True
        )

    def _flush(self, name: str, *, is_last: bool = False) -> None:
        array, joined = self._arrays[name], np.concatenate(self._pending[name])
        n = len(joined) if is_last else len(joined) // array.chunks[0] * array.chunks[0]
        start = array.shape[0]
        array.resize((start + n,))
        array[start:] = joined[:n]
        self._pending[name] = [joined[n:]]


def _cell_name(number: int) -> str:
    return f"cell{number + 1:08d}"
