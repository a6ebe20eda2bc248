"""Writes a training store, block by block, all or nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from scamac_scale.atomic import atomic_folder, writing
from scamac_scale.errors import InputError
from scamac_scale.store import layout
from scamac_scale.store.obs import storable_frame

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.config import IngestConfig
    from scamac_scale.genes import GeneSpace

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """What a store says about itself.

    Attributes
    ----------
    gene_space
        Its chosen genes are the columns of the store.
    value_dtype
        Type of the stored values, from `layout.value_dtype`.
    chunk_values
        Values in a chunk, from `layout.chunk_values`.
    config
        How the input was read.
    inputs
        Fingerprint of each input: plain values that JSON can hold.
    """

    gene_space: GeneSpace
    value_dtype: np.dtype[Any]
    chunk_values: int
    config: IngestConfig
    inputs: tuple[dict[str, Any], ...] = field(default=())


def write_store(
    out: str | Path,
    blocks: Iterable[sparse.csr_matrix],
    *,
    header: StoreHeader,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    overwrite: bool = False,
) -> Path:
    """Write a training store.

    Parameters
    ----------
    out
        Folder to be written.
    blocks
        Raw values of consecutive runs of cells, each (cells, G), chosen genes only, in order.
    header
        What the store says about itself.
    obs
        (N, columns) the cells; holds `layout.TOTAL` and `layout.SOURCE_ROW`.
    var
        (G, columns) the chosen genes.
    overwrite
        Whether an existing zarr folder is replaced; it stays until the new one is complete.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        If it is already there, or cannot be written. Nothing is left behind.
    InputError
        If a block does not fit, holds a value that the type cannot hold, or two columns of `obs` have one name.

    Notes
    -----
    Memory is one block, one chunk and 8 bytes per cell, beside `obs`.
    """
    with atomic_folder(out, overwrite=overwrite) as folder:
        with writing(Path(out)):
            root = zarr.open_group(str(folder), mode="w", zarr_format=3)
            _write_frames(root, header, obs, var)
        values = _ValueWriter(root, header, Path(out))
        for block in blocks:
            values.append(block)
        values.finish(n_cells=len(obs))
        with writing(Path(out)):
            _commit(root, folder, values.record_fields())  # flushed with all the rest, before the folder gets its name
    _log.info("wrote %d cells, %d genes, %d values to %s", len(obs), len(var), values.n_values, out)
    return Path(out)


def _write_frames(root: zarr.Group, header: StoreHeader, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    from anndata.io import write_elem

    options = {"compressors": [Crc32cCodec()], "shards": None}
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    # a chunk that is all zeros must exist, too, or a missing one could not be told from it
    with zarr.config.set({"array.write_empty_chunks": True}):
        write_elem(root, "obs", storable_frame(obs), dataset_kwargs=options)
        write_elem(root, "var", storable_frame(var), dataset_kwargs=options)
        for name in ("obsm", "obsp", "varm", "varp", "layers"):
            write_elem(root, name, {}, dataset_kwargs=options)
        about = {
            "version": layout.VERSION,
            "gene_space": json.dumps(header.gene_space.to_dict()),
            "config": json.dumps(asdict(header.config)),
            "inputs": json.dumps(header.inputs),
        }
        write_elem(root, "uns", {"scamac": about}, dataset_kwargs=options)


class _ValueWriter:
    """The three arrays of ``X``; values and genes go to disk in whole chunks."""

    def __init__(self, root: zarr.Group, header: StoreHeader, out: Path) -> None:
        self._out = out
        self._n_genes = len(header.gene_space.chosen)
        self._dtype = header.value_dtype
        self._gene_dtype = layout.index_dtype(self._n_genes)
        self._chunk = header.chunk_values
        self._lengths: list[NDArray[np.int64]] = []
        self._pending: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._n_pending = 0
        self._n_written = 0
        with writing(out):
            self._group = root.create_group("X")
            self._data = self._create("data", self._dtype, self._chunk)
            self._indices = self._create("indices", self._gene_dtype, self._chunk)

    @property
    def n_values(self) -> int:
        return self._n_written + self._n_pending

    def append(self, block: sparse.csr_matrix) -> None:
        if block.shape[1] != self._n_genes:
            raise InputError(f"A block of {block.shape[1]} genes for a store of {self._n_genes}.")
        if not block.has_canonical_format or (block.data == 0).any():
            block = block.copy()
            block.sum_duplicates()  # sorts, too
            block.eliminate_zeros()
        data = block.data.astype(self._dtype)
        if self._dtype.kind == "u" and not np.array_equal(data, block.data):
            raise InputError(
                f"A block holds {block.data.max()}, which is no count that {self._dtype} can hold; "
                "the input has changed since it was checked."
            )
        self._lengths.append(np.diff(block.indptr).astype(np.int64))
        self._pending.append((data, block.indices.astype(self._gene_dtype)))
        self._n_pending += data.size
        if self._n_pending >= self._chunk:
            self._flush(self._n_pending // self._chunk * self._chunk)

    def finish(self, n_cells: int) -> None:
        lengths = np.concatenate([np.zeros(0, np.int64), *self._lengths])
        if lengths.size != n_cells:
            raise InputError(f"{lengths.size} cells were read, but the input announced {n_cells}; it has changed.")
        self._flush(self._n_pending)
        self._indptr = np.concatenate(([0], np.cumsum(lengths)))
        with writing(self._out):
            array = self._create("indptr", np.dtype(np.int64), layout.INDPTR_CHUNK, n_cells + 1)
            array[:] = self._indptr
            self._group.attrs.update(
                {
                    "encoding-type": "csr_matrix",
                    "encoding-version": "0.1.0",
                    "shape": [n_cells, self._n_genes],
                }
            )

    def record_fields(self) -> dict[str, int]:
        return {"n_cells": self._indptr.size - 1, "n_genes": self._n_genes, "n_values": self._n_written}

    def _create(self, name: str, dtype: np.dtype[Any], chunk: int, size: int = 0) -> zarr.Array[Any]:
        return self._group.create_array(
            name,
            shape=(size,),
            dtype=dtype,
            chunks=(chunk,),
            compressors=[Crc32cCodec()],
            fill_value=0,
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
            config={"write_empty_chunks": True},
        )

    def _flush(self, n: int) -> None:
        """Write the first `n` pending values: whole chunks, or all that is left."""
        if n == 0:
            return
        start, stop = self._n_written, self._n_written + n
        arrays = (self._data, self._indices)
        joined = [np.concatenate(parts) for parts in zip(*self._pending, strict=True)]
        with writing(self._out):
            for array, values in zip(arrays, joined, strict=True):
                array.resize((stop,))
                array[start:stop] = values[:n]
        self._pending = [(joined[0][n:], joined[1][n:])]
        self._n_written, self._n_pending = stop, self._n_pending - n


def _commit(root: zarr.Group, folder: Path, fields: dict[str, int]) -> None:
    """Write the record into the root's metadata, after everything else."""
    record = layout.CommitRecord(version=layout.VERSION, metadata=layout.digest_metadata(folder), **fields)
    root.attrs.update({layout.RECORD: record.to_attribute()})
