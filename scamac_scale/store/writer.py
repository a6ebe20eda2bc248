"""Writes a training store, block by block, in random order, all or nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from scamac_scale.durable.atomic import atomic_folder, flush, flush_tree, writing
from scamac_scale.durable.faults import reach
from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import InputError
from scamac_scale.randomness import numpy_generator
from scamac_scale.store import layout
from scamac_scale.store.journal import cut
from scamac_scale.store.obs import storable_frame
from scamac_scale.store.places import SHARDS
from scamac_scale.store.record import write_record
from scamac_scale.store.rows import RowForm, tidied
from scamac_scale.store.shards import ShardWriter
from scamac_scale.store.shuffle import RowShuffler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.config import IngestConfig
    from scamac_scale.store.journal import Journal
    from scamac_scale.store.rows import Rows

_log = logging.getLogger(__name__)

_VALUES = ("data", "indices")
_BUCKETS, _LENGTHS = "buckets", "lengths"
_DEALT, _WRITTEN = "dealt", "written"
"""Notes: how many rows of the input are in the buckets, and how many rows are in the store."""
DURABLE_BYTES = 2**28
"""Bytes of values between two notes, where cells stay in the order of the input."""


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

    @property
    def form(self) -> RowForm:
        """In what rows are handed over."""
        n_genes = len(self.gene_space.chosen)
        return RowForm(n_genes, self.value_dtype, layout.index_dtype(n_genes))

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
    shuffle. Memory is one block, ``config.shuffle_bytes`` and 32 bytes per cell, beside `obs`.
    """
    form = header.form
    with atomic_folder(out, overwrite=overwrite) as folder:
        rows = (tidied(block, form) for block in blocks)
        fill_store(folder, lambda start: rows, header=header, frames=lambda: (obs, var), out=at_home(out))
    return at_home(out)


def fill_store(
    folder: Path,
    blocks: Callable[[int], Iterable[Rows]],
    *,
    header: StoreHeader,
    frames: Callable[[], tuple[pd.DataFrame, pd.DataFrame]],
    out: Path,
    journal: Journal | None = None,
) -> None:
    """Write a training store into an `atomic_folder`; see `write_store`.

    Parameters
    ----------
    folder
        Where it is written; the shuffle's buckets lie beside it meanwhile.
    blocks
        Gives consecutive runs of cells from a row of the input on, each as `tidied`.
    header
        As of `write_store`.
    frames
        Gives `obs` and `var` as of `write_store`, once; they are not kept while the values are written.
    out
        What the folder is going to be, for messages.
    journal
        Where it is noted how far this has come, and from where it goes on; None keeps no notes.
    """
    with writing(out):
        _take_back(folder)
        root = zarr.open_group(str(folder), mode="w", zarr_format=3)
    order, n_cells = _write_frames(root, header, frames, out)
    with _ValueWriter(root, folder, header, out, journal) as values:
        if order is None:
            _write_in_order(values, blocks)
        else:
            _write_shuffled(values, blocks, order, header)
        values.finish(n_cells)
    with writing(out):
        reach("ingest.commit")
        write_record(
            folder,
            profile=header.config.profile,
            n_cells=n_cells,
            n_genes=header.form.n_genes,
            n_values=values.n_values,
            digests=values.digests,
        )
        if journal is not None:
            flush_tree(folder)
            journal.complete(folder)
    _log.info("wrote %d cells, %d genes, %d values to %s", n_cells, header.form.n_genes, values.n_values, out)


def _take_back(folder: Path) -> None:
    """Put the shards of a store that a stopped writer was finishing where they are written."""
    for name in _VALUES:
        shards = folder / "X" / name / SHARDS
        if shards.exists():
            shards.rename(folder.parent / name / SHARDS)


def _write_in_order(values: _ValueWriter, blocks: Callable[[int], Iterable[Rows]]) -> None:
    for rows in blocks(values.n_rows):
        values.append(*rows)
        if values.is_loose:
            values.note()


def _write_shuffled(
    values: _ValueWriter,
    blocks: Callable[[int], Iterable[Rows]],
    order: NDArray[np.int64],
    header: StoreHeader,
) -> None:
    entry_bytes = header.value_dtype.itemsize + values.gene_dtype.itemsize
    row_bytes = 8 + header.n_values * entry_bytes / max(order.size, 1)
    shuffler = RowShuffler(order, values.scratch / _BUCKETS, row_bytes, header.config.shuffle_bytes)
    journal = values.journal if shuffler.n_buckets > 1 else None  # rows that fit in memory are read again
    _deal(values, blocks, shuffler, journal)
    with writing(values.out):
        for rows in shuffler.rows(values.n_rows, None if journal is None else values.note):
            values.append(*rows)


def _deal(
    values: _ValueWriter,
    blocks: Callable[[int], Iterable[Rows]],
    shuffler: RowShuffler,
    journal: Journal | None,
) -> None:
    if journal is not None:
        noted = journal.read(_DEALT)
        with writing(values.out):
            if noted is None:
                shutil.rmtree(values.scratch / _BUCKETS, ignore_errors=True)
            elif not shuffler.restore(int(noted["n_rows"]), noted["sizes"], values.n_rows):
                raise journal.damaged(values.scratch / _BUCKETS)
        if noted is not None:
            _log.info(
                "going on: of %d cells, %d are dealt, %d are in the store",
                shuffler.n_rows,
                shuffler.n_dealt,
                values.n_rows,
            )
    n_cells = shuffler.n_dealt
    if n_cells == shuffler.n_rows:
        return
    for rows in blocks(n_cells):
        n_cells += len(rows[0])
        _check_count(n_cells, shuffler.n_rows, is_all=False)
        with writing(values.out):
            shuffler.append(*rows)
            if journal is not None and shuffler.is_loose:
                journal.note(_DEALT, sizes=shuffler.sizes(), n_rows=shuffler.n_dealt)
    _check_count(n_cells, shuffler.n_rows)
    with writing(values.out):
        shuffler.end()
        if journal is not None:
            journal.note(_DEALT, sizes=shuffler.sizes(), n_rows=shuffler.n_dealt)


def _check_count(n_read: int, n_cells: int, *, is_all: bool = True) -> None:
    if n_read > n_cells or (is_all and n_read != n_cells):
        raise InputError(f"{n_read} cells were read, but the input announced {n_cells}; it has changed.")


def _write_frames(
    root: zarr.Group, header: StoreHeader, frames: Callable[[], tuple[pd.DataFrame, pd.DataFrame]], out: Path
) -> tuple[NDArray[np.int64] | None, int]:
    """Write all but the values; the order of the cells (None: as they come), and their number."""
    obs, var = frames()
    order = header.order(len(obs))
    with writing(out):
        _write_tables(root, header, obs if order is None else obs.iloc[order], var)
    return order, len(obs)


def _write_tables(root: zarr.Group, header: StoreHeader, obs: pd.DataFrame, var: pd.DataFrame) -> None:
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
            "gene_space": json.dumps(header.gene_space.to_dict(has_input=True)),
            "config": json.dumps(header.config.to_plain()),
            "inputs": json.dumps(header.inputs),
        }
        write_elem(root, "uns", {"scamac": about}, dataset_kwargs=options)


class _ValueWriter:
    """The three arrays of ``X``; a context manager that closes their files. Goes on from where the journal says."""

    def __init__(
        self, root: zarr.Group, folder: Path, header: StoreHeader, out: Path, journal: Journal | None = None
    ) -> None:
        self.out = out
        self.journal = journal
        self.scratch = folder.parent
        self.gene_dtype = header.form.gene_dtype
        self.n_rows = 0
        self._folder = folder
        self._n_genes = header.form.n_genes
        self._dtype = header.value_dtype
        self._lengths: list[NDArray[np.int64]] = []
        self._n_noted_rows = self._n_noted_parts = self._n_noted_values = 0
        profile = layout.PROFILES[header.config.profile]
        with writing(out):
            self._group = root.create_group("X")
            self._arrays, self._writers = {}, {}
            for name, dtype, shuffle in zip(
                _VALUES, (self._dtype, self.gene_dtype), (profile.data, profile.indices), strict=True
            ):
                self._arrays[name] = self._create(name, dtype, header.sizes, shuffle)
                self._writers[name] = ShardWriter(self.scratch / name, dtype, header.sizes, shuffle)
            if journal is not None:
                self._restore(journal)

    def __enter__(self) -> _ValueWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()

    def _restore(self, journal: Journal) -> None:
        noted = journal.read(_WRITTEN) or {"n_rows": np.array(0)}
        self.n_rows = self._n_noted_rows = int(noted["n_rows"])
        if self.n_rows == 0:
            return
        if not cut(self.scratch / _LENGTHS, 8 * self.n_rows):
            raise journal.damaged(self.scratch / _LENGTHS)
        self._lengths = [np.fromfile(self.scratch / _LENGTHS, np.int64)]
        for name, writer in self._writers.items():
            state = {key.removeprefix(f"{name}_"): value for key, value in noted.items() if key.startswith(f"{name}_")}
            if not writer.restore(state):
                raise journal.damaged(self.scratch / name)
        self._n_noted_parts, self._n_noted_values = len(self._lengths), self.n_values

    @property
    def is_loose(self) -> bool:
        """Whether so much was written since `note` that it is time for it."""
        entry_bytes = self._dtype.itemsize + self.gene_dtype.itemsize
        return (self.n_values - self._n_noted_values) * entry_bytes >= DURABLE_BYTES

    def note(self) -> None:
        """Flush what was written, and note that a later run goes on from here; without a journal, do nothing."""
        if self.journal is None:
            return
        with writing(self.out):
            with (self.scratch / _LENGTHS).open("ab" if self._n_noted_rows else "wb") as file:
                for lengths in self._lengths[self._n_noted_parts :]:
                    file.write(lengths.tobytes())
                file.flush()
                os.fsync(file.fileno())
            noted = {"n_rows": np.array(self.n_rows)}
            for name, writer in self._writers.items():
                noted |= {f"{name}_{key}": value for key, value in writer.state().items()}
                flush(self.scratch / name)
            self.journal.note(_WRITTEN, **noted)
        self._n_noted_rows, self._n_noted_parts, self._n_noted_values = self.n_rows, len(self._lengths), self.n_values

    @property
    def n_values(self) -> int:
        return self._writers["data"].n_values

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the shards, by their names in the store."""
        return {
            f"X/{name}/{SHARDS}/{number}": digest
            for name, writer in self._writers.items()
            for number, digest in enumerate(writer.digests)
        }

    def append(self, lengths: NDArray[np.int64], genes: NDArray[Any], values: NDArray[Any]) -> None:
        self._lengths.append(lengths)
        self.n_rows += lengths.size
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
                (self.scratch / name / SHARDS).rename(self._folder / "X" / name / SHARDS)
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
            # as the JSON that a store holds of it
            about: dict[str, Any] = {**layout.COMPRESSOR, "shuffle": shuffle, "typesize": dtype.itemsize}
            compressors.insert(0, BloscCodec.from_dict({"name": "blosc", "configuration": about}))
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
