"""Writes a training store, block by block, in random order, all or nothing."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from scamac_scale.atomic import atomic_folder, writing
from scamac_scale.errors import InputError, choose
from scamac_scale.randomness import numpy_generator
from scamac_scale.store import layout
from scamac_scale.store.obs import storable_frame
from scamac_scale.store.record import write_record
from scamac_scale.store.shards import ShardWriter
from scamac_scale.store.shuffle import RowShuffler

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.config import IngestConfig
    from scamac_scale.genes import GeneSpace

_log = logging.getLogger(__name__)

_BUCKETS = "shuffle-buckets"


@dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """What a store says about itself.

    Attributes
    ----------
    gene_space
        Its chosen genes are the columns of the store.
    value_dtype
        Type of the stored values, from `layout.value_dtype`.
    n_values
        Values that are going to come, or a guess: for the size of the shuffle's buckets.
    config
        How the input was read; its `profile`, `shuffle` and `seed` say how it is written.
    inputs
        Fingerprint of each input: plain values that JSON can hold.
    sizes
        Of chunks and shards.
    """

    gene_space: GeneSpace
    value_dtype: np.dtype[Any]
    n_values: int
    config: IngestConfig
    inputs: tuple[dict[str, Any], ...] = field(default=())
    sizes: layout.Sizes = field(default_factory=layout.Sizes)

    def order(self, n_cells: int) -> NDArray[np.int64] | None:
        """Row of the input that comes first, second, ... in the store; None where the order stays."""
        if not self.config.shuffle:
            return None
        return numpy_generator(self.config.seed, "store order").permutation(n_cells)


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
        Raw values of consecutive runs of cells, each (cells, G), chosen genes only, in the order of the input.
    header
        What the store says about itself.
    obs
        (N, columns) the cells, in the order of the input; holds `layout.TOTAL` and `layout.SOURCE_ROW`.
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
    The order of the cells is a uniform random permutation drawn from the seed of ``header.config``, unless that says not to
    shuffle. Memory is one block, `shuffle.SHUFFLE_BYTES` and 32 bytes per cell, beside `obs`.
    """
    order = header.order(len(obs))
    with atomic_folder(out, overwrite=overwrite) as folder:
        with writing(Path(out)):
            root = zarr.open_group(str(folder), mode="w", zarr_format=3)
            _write_frames(root, header, obs if order is None else obs.iloc[order], var)
        with _ValueWriter(root, folder, header, Path(out)) as values:
            if order is None:
                for block in blocks:
                    values.append(*values.tidy(block))
            else:
                _write_shuffled(values, blocks, order, header, folder / _BUCKETS)
            values.finish(n_cells=len(obs))
        with writing(Path(out)):  # flushed with all the rest, before the folder gets its name
            write_record(
                folder, profile=header.config.profile, n_cells=len(obs), n_genes=len(var), n_values=values.n_values
            )
    _log.info("wrote %d cells, %d genes, %d values to %s", len(obs), len(var), values.n_values, out)
    return Path(out)


def _write_shuffled(
    values: _ValueWriter,
    blocks: Iterable[sparse.csr_matrix],
    order: NDArray[np.int64],
    header: StoreHeader,
    folder: Path,
) -> None:
    entry_bytes = header.value_dtype.itemsize + values.gene_dtype.itemsize
    shuffler = RowShuffler(order, folder, 8 + header.n_values * entry_bytes / max(order.size, 1))
    n_cells = 0
    for block in blocks:
        tidied = values.tidy(block)
        n_cells += len(tidied[0])
        _check_count(n_cells, order.size, is_all=False)
        with writing(values.out):
            shuffler.append(*tidied)
    _check_count(n_cells, order.size)
    with writing(values.out):
        for rows in shuffler.rows():
            values.append(*rows)
        shutil.rmtree(folder, ignore_errors=True)


def _check_count(n_read: int, n_cells: int, *, is_all: bool = True) -> None:
    if n_read > n_cells or (is_all and n_read != n_cells):
        raise InputError(f"{n_read} cells were read, but the input announced {n_cells}; it has changed.")


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
    """The three arrays of ``X``; a context manager that closes their files."""

    def __init__(self, root: zarr.Group, folder: Path, header: StoreHeader, out: Path) -> None:
        self.out = out
        self.gene_dtype = layout.index_dtype(len(header.gene_space.chosen))
        self._n_genes = len(header.gene_space.chosen)
        self._dtype = header.value_dtype
        self._lengths: list[NDArray[np.int64]] = []
        profile = choose(layout.PROFILES, header.config.profile, "ingest.profile")
        with writing(out):
            self._group = root.create_group("X")
            self._arrays, self._writers = {}, {}
            for name, dtype, shuffle in (
                ("data", self._dtype, profile.data),
                ("indices", self.gene_dtype, profile.indices),
            ):
                self._arrays[name] = self._create(name, dtype, header.sizes, shuffle)
                self._writers[name] = ShardWriter(folder / "X" / name, dtype, header.sizes, shuffle)

    def __enter__(self) -> _ValueWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()

    @property
    def n_values(self) -> int:
        return self._writers["data"].n_values

    def tidy(self, block: sparse.csr_matrix) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
        """Check a block and bring it into the types of the store: values per row, genes, values."""
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
        return np.diff(block.indptr).astype(np.int64), block.indices.astype(self.gene_dtype), data

    def append(self, lengths: NDArray[np.int64], genes: NDArray[Any], values: NDArray[Any]) -> None:
        self._lengths.append(lengths)
        with writing(self.out):
            self._writers["indices"].append(genes)
            self._writers["data"].append(values)

    def finish(self, n_cells: int) -> None:
        lengths = np.concatenate([np.zeros(0, np.int64), *self._lengths])
        _check_count(lengths.size, n_cells)
        indptr = np.concatenate(([0], np.cumsum(lengths)))
        with writing(self.out):
            for name, writer in self._writers.items():
                writer.finish()
                self._arrays[name].resize((writer.n_values,))
            array = self._create("indptr", np.dtype(np.int64), None, None, n_cells + 1)
            array[:] = indptr
            shape = {"shape": [n_cells, self._n_genes]}
            self._group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", **shape})

    def _create(
        self, name: str, dtype: np.dtype[Any], sizes: layout.Sizes | None, shuffle: str | None, n_values: int = 0
    ) -> zarr.Array[Any]:
        compressors: list[Any] = [Crc32cCodec()]
        if shuffle is not None:
            options: dict[str, Any] = {**layout.COMPRESSOR, "shuffle": shuffle, "typesize": dtype.itemsize}
            compressors.insert(0, BloscCodec(**options))
        return self._group.create_array(
            name,
            shape=(n_values,),
            dtype=dtype,
            chunks=(min(layout.INDPTR_CHUNK, n_values) if sizes is None else sizes.chunk_values,),
            shards=None if sizes is None else (sizes.shard_values,),
            compressors=compressors,
            fill_value=0,
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
            config={"write_empty_chunks": True},
        )
