"""Reads a training store: any cells, without holding the matrix.

`StoreReader` satisfies the loader's `CellSource`: runs of cells are read straight into reused memory, as they are stored,
with the factor of each cell; kernels of `scamac_scale.cells.buffer` finish them.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zarr

from scamac_scale.cells.buffer import RowBuffer, near_runs, read_rows, rows_of
from scamac_scale.cells.csr import CsrBlock, csr_bytes
from scamac_scale.cells.genes import GeneSpace
from scamac_scale.cells.normalisation import cell_scale, normalise_values
from scamac_scale.cells.tech_batches import WithTechBatches
from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.plain import parse_json, parse_json_list
from scamac_scale.errors import PlanError, StoreError
from scamac_scale.progress import track
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.place import BucketPlace
from scamac_scale.remote.stamps import Stamp, looks_at
from scamac_scale.store import layout
from scamac_scale.store.places import REMAKE as _REMAKE
from scamac_scale.store.places import place_of_store
from scamac_scale.store.record import read_record
from scamac_scale.store.shards import ShardReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    import pandas as pd
    from numpy.typing import NDArray

GAP_CELLS = 64
"""Scattered cells that are no farther apart are read with what lies between them: a read costs as much as so many cells."""
VERIFY_CELLS = 8192
_ODD = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)
"""What reading arrays of somebody else may end with, by way of zarr and anndata."""
READ_CELLS = 4096
"""Cells of such a stretch at most."""


class StoreReader(WithTechBatches):
    """A training store, open for reading.

    Parameters
    ----------
    path
        Folder of the store, or its URL in object storage.
    cache_bytes
        Of copies of shards that are kept on the local disk, where the store lies in a bucket; None takes the default.

    Attributes
    ----------
    path
        Where the store lies.
    n_cells, n_genes, n_values
        Cells, chosen genes, stored values.
    profile
        Key of `layout.PROFILES`.
    value_dtype
        Type of the stored values.
    gene_space
        The genes, and how values are normalised.
    stamps
        What tells it from a store that takes its place.

    Raises
    ------
    StoreError
        If there is no store, it is incomplete, damaged or of another version.

    Notes
    -----
    Memory is 13 bytes per cell (17 where totals are no whole numbers below 2**24, or not counts), one byte and the index of
    each chunk. Reading is safe from several threads; a process that was forked off after opening is refused.
    """

    def __init__(self, path: str | os.PathLike[str] | BucketPlace, cache_bytes: int | None = None) -> None:
        place = place_of_store(path, cache_bytes)
        self.path = place.path
        self._pid = os.getpid()
        self.stamps = _look_at_record(self.path)
        record = read_record(place)
        place.digests = record.digests or {}
        self._digests = place.digests
        self.n_cells, self.n_genes, self.n_values = record.n_cells, record.n_genes, record.n_values
        self.profile = record.profile
        with self._reading():
            self._root = zarr.open_group(place.zarr_store(), mode="r", zarr_format=3)
            self._about = {key: self._text(key) for key in ("gene_space", "config", "inputs")}
            self._check_about()
            self._indptr = self._whole("X/indptr", self.n_cells + 1)
            value_dtype = self._array("X/data", self.n_values).dtype
            self._totals = self._read_totals()
        self._gene_dtype = layout.index_dtype(self.n_genes)
        files = {name: place.shards(f"X/{name}", self.n_values) for name in ("indices", "data")}
        self._genes = ShardReader(files["indices"], self._gene_dtype, self.n_values, limit=self.n_genes)
        self._values = ShardReader(files["data"], value_dtype, self.n_values)
        self.value_dtype: np.dtype[Any] = value_dtype
        self._is_ordered = np.zeros(self.n_cells, bool)
        self._check_arrays()

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the folders of the two large arrays."""
        self._genes.close()
        self._values.close()

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
        return csr_bytes(self.n_cells, self.n_values, self._gene_dtype)

    @property
    def load_bytes(self) -> int:
        """Bytes of all cells as `load` gives them."""
        entry_bytes = self.value_dtype.itemsize + self._gene_dtype.itemsize
        return (16 if self._is_scaled else 8) * self.n_cells + 8 + self.n_values * entry_bytes

    @property
    def resident(self) -> None:
        """None: cells stay on disk."""
        return

    @property
    def _is_scaled(self) -> bool:
        return self._totals is not None and self.value_dtype.kind == "u"

    @property
    def config(self) -> dict[str, Any]:
        """The ingest settings of the store."""
        return dict(self._json("config"))

    @property
    def batch_key(self) -> str | None:
        """Columns of `obs` with the technical batches, with commas between them; None for a store without."""
        key: str | None = self._json("config").get("batch_key")
        return key

    @property
    def totals(self) -> NDArray[Any] | None:
        """(N,) sum of each cell over the filtered genes; None for log values."""
        return self._totals

    @property
    def marks(self) -> list[object]:
        """SHA-256 of what all files of ``X`` and obs hold, wherever the store lies; none of one of an earlier program."""
        told = [f"{name} {self._digests[name]}\n" for name in sorted(self._digests) if name.startswith(("X/", "obs/"))]
        return [sha256_of(*told)] if told else []

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """Fingerprint of each input."""
        return parse_json_list(self._about["inputs"])

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
        with self._reading(f"obs/{layout.SOURCE_ROW}"):
            rows = self._whole(f"obs/{layout.SOURCE_ROW}", self.n_cells)
            if rows.size and (rows.min() < 0 or rows.max() >= rows.size or (np.bincount(rows) != 1).any()):
                raise ValueError("it does not name every row of the input once")
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
        """
        return read_rows(self.load, rows, self.n_cells, self.n_genes)

    def load(self, starts: NDArray[np.int64], stops: NDArray[np.int64], into: RowBuffer) -> None:
        """Load runs of cells as they are stored.

        Parameters
        ----------
        starts, stops
            (R,) first row of each run, and the one after its last; within the store.
        into
            Receives the runs, one after the other.

        Raises
        ------
        StoreError
            If a chunk is missing or damaged.
        PlanError
            In a process that was forked off after the store was opened.
        """
        if os.getpid() != self._pid:
            raise PlanError(
                f"{self.path} was opened by process {self._pid} and is read by {os.getpid()}, which was forked off: the threads "
                "and locks that zarr had do not survive that. Open the store in the process that reads it; the feed reads "
                "ahead with threads and needs no worker processes."
            )
        pieces = near_runs(starts, stops, GAP_CELLS, READ_CELLS)
        if len(pieces) < starts.size // 2:  # scattered cells: read what lies between them, too
            spans = RowBuffer()
            self._load(np.array([runs[0][0] for runs in pieces]), np.array([runs[1][-1] for runs in pieces]), spans)
            wanted = [rows_of(*runs) - runs[0][0] for runs in pieces]
            ends = np.cumsum([0] + [int(runs[1][-1] - runs[0][0]) for runs in pieces])
            into.take(spans, np.concatenate([rows + end for rows, end in zip(wanted, ends, strict=False)]))
            return
        self._load(starts, stops, into)

    def _load(self, starts: NDArray[np.int64], stops: NDArray[np.int64], into: RowBuffer) -> None:
        lows, highs = self._indptr[starts], self._indptr[stops]
        n_rows, n_values = int((stops - starts).sum()), int((highs - lows).sum())
        is_scaled = self._is_scaled
        into.allot(n_rows, n_values, self._gene_dtype, self.value_dtype, is_scaled=is_scaled)
        row = at = 0
        for start, stop, low, high in zip(starts.tolist(), stops.tolist(), lows.tolist(), highs.tolist(), strict=True):
            np.add(self._indptr[start + 1 : stop + 1], at - low, out=into.indptr[row + 1 : row + 1 + stop - start])
            self._genes.read(low, high, into.genes[at : at + high - low])
            self._values.read(low, high, into.values[at : at + high - low])
            row, at = row + stop - start, at + high - low
        self._check_order(rows_of(starts, stops), into)
        if self._totals is not None:
            assert self.gene_space.target_sum is not None
            scale = cell_scale(self._totals[rows_of(starts, stops)], self.gene_space.target_sum)
            if into.scale is not None:
                into.scale[:] = scale
            else:
                into.values[:] = normalise_values(into.indptr, into.values, scale)

    def _check_order(self, rows: NDArray[np.int64], found: RowBuffer) -> None:
        """Refuse cells whose genes do not ascend: one that stands twice would lose a value. Each cell is looked at once."""
        if self._is_ordered[rows].all():
            return
        n_values = int(found.indptr[len(rows)])
        genes = found.genes[:n_values]
        falls = np.flatnonzero(genes[1:] <= genes[:-1]) + 1
        starts = found.indptr[: len(rows)]
        if not (starts[np.searchsorted(starts, falls, side="right") - 1] == falls).all():
            raise StoreError(f"{self.path}/X/indices has genes of a cell that do not ascend; {_REMAKE}.")
        self._is_ordered[rows] = True

    def verify(self) -> None:
        """Read every array of the store to its end, and so recompute every checksum; see that cells are as a writer leaves them.

        Raises
        ------
        StoreError
            Names the file or the array that is not as it was written.
        """
        with track("verify", 2 * self.n_values, "values") as progress:
            for shards in (self._genes, self._values):
                for n_values in shards.verify():
                    progress.advance(n_values)
        held = RowBuffer()
        for start in range(0, self.n_cells, VERIFY_CELLS):
            self._load(np.array([start]), np.array([min(start + VERIFY_CELLS, self.n_cells)]), held)
            if not np.isfinite(held.values).all():
                raise StoreError(f"{self.path}/X/data has values that are not finite; {_REMAKE}.")
        _ = self.source_rows
        with self._reading():
            arrays = [name for name, item in self._root.members(max_depth=None) if isinstance(item, zarr.Array)]
        for name in arrays:
            if name not in ("X/data", "X/indices"):
                with self._reading(name):
                    _ = self._root[name][...]  # type: ignore[index]  # an array, as was seen

    def _read_totals(self) -> NDArray[Any] | None:
        """Totals of the cells, in four bytes each where these hold them."""
        if self.gene_space.target_sum is None:
            return None
        totals = self._array(f"obs/{layout.TOTAL}", self.n_cells)[:]
        if totals.dtype.kind not in "fiu" or not np.isfinite(totals).all() or (totals < 0).any():
            raise ValueError(f"obs/{layout.TOTAL} has totals that are no positive numbers")
        if (totals[np.diff(self._indptr) > 0] == 0).any():
            raise ValueError(f"obs/{layout.TOTAL} has totals of 0 for cells that have values")
        narrow: NDArray[Any] = totals.astype(np.float32)
        return narrow if np.array_equal(narrow, totals) else np.asarray(totals)

    def _array(self, name: str, size: int) -> Any:  # Any: a zarr array
        array = self._root[name]
        if not isinstance(array, zarr.Array) or array.shape != (size,):
            raise StoreError(f"{self.path}/{name} is not the array of {size} that the commit record names; {_REMAKE}.")
        return array

    def _whole(self, name: str, size: int) -> NDArray[np.int64]:
        """Read an array of whole numbers."""
        found = self._array(name, size)[:]
        if found.dtype.kind not in "iu":
            raise ValueError(f"{name} holds {found.dtype}")
        whole: NDArray[np.int64] = found.astype(np.int64)
        return whole

    def _check_about(self) -> None:
        """Read the genes; refuse them, settings and inputs of other types than a writer leaves."""
        try:
            self.gene_space = GeneSpace.from_dict(self._json("gene_space"))
        except StoreError as error:
            raise StoreError(f"{self.path}: {error}") from error
        if not isinstance(self._json("config").get("batch_key"), str | None):
            raise ValueError("its batch key is no text")
        if not all(isinstance(entry, dict) for entry in self.inputs):
            raise ValueError("its inputs are no named values")

    def _check_arrays(self) -> None:
        indptr = self._indptr
        kinds = ("u",) if self.gene_space.kind == "counts" else ("f",)
        if self.value_dtype.kind not in kinds or self.value_dtype.itemsize > 8 or self.value_dtype == np.float64:
            raise StoreError(
                f"{self.path}/X/data holds {self.value_dtype}, which no store of {self.gene_space.kind} values does; {_REMAKE}."
            )
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
        return parse_json(self._about[key])

    @contextmanager
    def _reading(self, what: str = "the store") -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except _ODD as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise StoreError(f"{self.path}: {what} is damaged ({reason}); {_REMAKE}.") from error


def _look_at_record(path: Path | BucketPlace) -> tuple[Stamp, ...]:
    """Look at the record of a store, which names all of its files, before it is read."""
    if not isinstance(path, BucketPlace):
        record = str(path / layout.METADATA)
        return looks_at([record]) if os.path.isfile(record) else ()
    entry = Bucket(path, StoreError).find(layout.METADATA)
    return () if entry is None else (Stamp(str(path / layout.METADATA), entry.size, entry.etag.strip('"')),)
