"""Raw data to a training store: three streamed passes (check, sum, write)."""

from __future__ import annotations

import logging
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.tech_batches import as_categories, split_key
from scamac_scale.config import IngestConfig
from scamac_scale.durable.atomic import absolute, atomic_folder, bytes_below, check_output, check_room
from scamac_scale.durable.differences import differences, told
from scamac_scale.durable.digests import sha256_of
from scamac_scale.errors import ClusterError, InputError, LostRankError, OutputError, ResumeError, StoreError
from scamac_scale.host.memory import explained
from scamac_scale.ingestion.engine.choose import engine_of
from scamac_scale.ingestion.flavors.given import note_of_genes
from scamac_scale.ingestion.formats.mtx_there import stamp_beside
from scamac_scale.ingestion.many.inputs import list_inputs
from scamac_scale.ingestion.many.opening import open_inputs
from scamac_scale.ingestion.many.quality import without_poor
from scamac_scale.ingestion.normalise import GeneColumns
from scamac_scale.ingestion.orientation import warn_of_droplets
from scamac_scale.ingestion.passes import select_block
from scamac_scale.ingestion.raw import FILE_ROW, Part
from scamac_scale.ingestion.resume import measured
from scamac_scale.ingestion.statistics import measure, tech_batches_of
from scamac_scale.progress import Told, stages
from scamac_scale.remote.bucket import stamp_of
from scamac_scale.remote.place import BucketPlace, is_url, parse
from scamac_scale.store import layout
from scamac_scale.store.bucket import StoreBucket
from scamac_scale.store.journal import Journal, discard
from scamac_scale.store.reader import StoreReader
from scamac_scale.store.record import is_store
from scamac_scale.store.writer import StoreHeader, fill_store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from anndata import AnnData

    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.ingestion.statistics import RawStatistics
    from scamac_scale.store.rows import Rows
    from scamac_scale.workers.connect import Client

logger = logging.getLogger(__name__)

SMALL_SHARE = 0.2
"""Of the space of values, that a compressed store takes at least."""


@explained("ingest")
def ingest(
    data: str | os.PathLike[str] | AnnData | Sequence[str | os.PathLike[str] | AnnData],
    out: str | os.PathLike[str],
    config: IngestConfig | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    dask: Client | str | None = None,
    workers: int | None = None,
) -> Path | str:
    """Turn raw data into a training store.

    Parameters
    ----------
    data
        An h5ad, an AnnData zarr or a 10x h5, an AnnData in memory, a glob, a manifest, or a list of these; see docs/many.md.
    out
        Folder of the store, or a URL in object storage: then it is made on the local disk, and put there.
    config
        How the data is read, and how many genes are kept; None takes the defaults.
    overwrite
        Whether an existing zarr folder is replaced; it stays until the new one is complete.
    resume
        Whether to go on from where an ingest of the same data with the same settings was stopped; its end is the same to
        the byte. Where nothing was begun it begins, and a store that is complete is left as it is.
    dask, workers
        A dask cluster that reads, checks and selects, see `cluster.connect.connected`; None takes threads of this process. The store is
        the same to the byte, and one that was stopped may go on without, or with another one.

    Returns
    -------
    Path or str
        The store, or its URL.

    Raises
    ------
    OutputError
        If `out` is there already, cannot be written, is being written by another job, or holds the input; checked before
        any work. Nothing is left behind.
    InputError
        If the data cannot be used.
    ResumeError
        If what was begun, or is complete, is of other data or settings, or the data is in memory.
    ClusterError, LostRankError
        If a cluster cannot do the work, or is lost; what was done is kept for `resume`.

    Notes
    -----
    Reads the data three times, once before where cells are left out by their values, and a flavor of genes may read it once or twice more.
    Memory is a few blocks of ``config.block_cells`` cells, ``config.shuffle_bytes``, 48 bytes
    per cell, and `obs`. While it shuffles, the disk holds the store twice. An interrupt (and a kill) leaves a hidden folder
    beside `out` for `resume`, unless the data is in memory; without `resume` the next ingest begins anew.
    """
    config = config or IngestConfig()
    if is_url(out):
        make = partial(ingest, data, config=config, resume=resume, dask=dask, workers=workers)
        return _ingest_there(data, StoreBucket(parse(out)), config, make, overwrite=overwrite, resume=resume)
    is_there = resume and is_store(absolute(Path(out)))  # then it is looked at, and not refused at once
    path = check_output(Path(out), overwrite=overwrite or is_there)
    with open_inputs(data, config) as raw:
        inputs = raw.parts or (raw,)
        _refuse_itself(inputs, path)
        _refuse_columns(raw, config)
        in_memory = [part.name for part in inputs if part.path is None]
        if resume and in_memory:
            raise ResumeError(
                f"{in_memory[0]} cannot be told from another one, so its ingest cannot be resumed; write a file."
            )
        plan = _plan(raw, config)
        raw.check_unchanged()  # so that the plan is of what was opened
        if is_there and _is_finished(path, plan, is_replaced=overwrite):
            return path
        kept = () if in_memory else (KeyboardInterrupt, ResumeError, ClusterError, LostRankError)
        engines = engine_of(config.block_cells, dask, workers)
        files = atomic_folder(path, overwrite=overwrite, resumes=resume, keeps_on=kept, rename_point="ingest.rename")
        with engines as engine, files as folder, stages(_parts(raw.n_cells)):
            journal = None if in_memory else Journal.open(folder, plan, path)
            if journal is None or not journal.is_complete(folder):
                _fill(folder, raw, config, path, journal, engine)
                raw.check_unchanged()
    return path


def _ingest_there(
    data: str | os.PathLike[str] | AnnData | Sequence[str | os.PathLike[str] | AnnData],
    target: StoreBucket,
    config: IngestConfig,
    make: Callable[..., object],
    *,
    overwrite: bool,
    resume: bool,
) -> str:
    """Make a store on the local disk, and put it into a bucket."""
    for one in list_inputs(data):
        if is_url(one.data) and (place := parse(one.data)) in (target.place, *_above(target.place)):
            raise OutputError(f"{target.place} is the input {place}, or lies inside it; choose another name.")
    with target.held():
        if resume and target.is_there:
            with open_inputs(data, config) as raw:
                plan = _plan(raw, config)
            if _is_finished(target.place, plan, is_replaced=overwrite):
                target.forget()
                return str(target.place)
        target.check(overwrite=overwrite)
        make(target.path, overwrite=True)  # what is complete there, and is another, is scratch
        target.put(overwrite=overwrite)
    return str(target.place)


def _above(place: BucketPlace) -> Iterator[BucketPlace]:
    while place.key:
        place = place.parent
        yield place


def _plan(raw: RawMatrix, config: IngestConfig) -> dict[str, Any]:
    """Say what is being done, so that work which was begun is told from other work."""
    inputs, note = raw.parts or (raw,), note_of_genes(config.genes)
    files = [_files(part) for part in inputs]
    return {
        "layout": layout.VERSION,
        "config": config.to_plain(),
        **_inputs_of_plan([fingerprint(part) | note for part in inputs]),
        "files": files[0] if len(files) == 1 else {str(number): found for number, found in enumerate(files)},
    }


def _fill(
    folder: Path, whole: RawMatrix, config: IngestConfig, out: Path, journal: Journal | None, engine: Engine
) -> None:
    raw = without_poor(whole, config, engine, journal)
    found = measure(raw, config, engine=engine) if journal is None else measured(raw, config, journal, engine)
    warn_of_droplets(found.totals, found.gene_space.kind, raw.name)
    columns = GeneColumns.locate(found.gene_space, raw.gene_names)
    header = StoreHeader(
        gene_space=found.gene_space,
        value_dtype=layout.value_dtype(found.gene_space.kind, found.largest),
        n_values=found.n_stored,
        config=config,
        inputs=tuple(fingerprint(part) | note_of_genes(config.genes) for part in whole.parts or (whole,)),
    )
    _check_room(folder, header)

    def blocks(first: int) -> Iterator[Rows]:
        with closing(engine.map(raw, select_block, (columns.target, header.form), "writing store", first)) as parts:
            for _, rows in parts:
                yield rows

    def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
        obs = _observations(raw, found, split_key(config.batch_key))
        raw.forget_obs()
        return obs, found.var

    fill_store(folder, blocks, header=header, frames=frames, out=out, journal=journal)


def _parts(n_cells: int) -> list[Told]:
    """Name the passes over the cells; the seconds are those of 17,000 genes."""
    return [
        Told("looking at the values", 1.3e-5 * n_cells, "checking values"),
        Told("measuring the genes", 2e-5 * n_cells, "measuring genes"),
        Told("writing the store", 3e-5 * n_cells, "writing store"),
    ]


def _inputs_of_plan(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if len(found) == 1:
        return {"input": found[0]}
    return {"n_inputs": len(found), "input": {str(number): about for number, about in enumerate(found)}}


def _check_room(folder: Path, header: StoreHeader) -> None:
    """Refuse a disk that cannot hold the store, before hours of writing; what lies there of it already counts."""
    share = 1.0 if header.config.profile == "fast" else SMALL_SHARE
    n_bytes = int(header.n_values * (header.value_dtype.itemsize + 2) * share) - bytes_below(folder.parent)
    check_room(folder, max(n_bytes, 0))


def _is_finished(path: Path | BucketPlace, plan: dict[str, Any], *, is_replaced: bool) -> bool:
    """Whether a store is what was asked for; an error if it is another one that shall not be replaced."""
    try:
        with StoreReader(path) as store:
            found = {"layout": layout.VERSION, "config": store.config, **_inputs_of_plan(store.inputs or [{}])}
    except StoreError:
        if is_replaced:
            return False
        raise
    different = list(differences(found, {key: value for key, value in plan.items() if key != "files"}))
    if not different:
        if isinstance(path, Path):
            discard(path, if_plan=plan)
        logger.info("%s is complete already", path)
        return True
    if not is_replaced:
        raise ResumeError(
            f"{path} is complete, and of another ingest: {told(different)}. Choose another name, or replace it with overwrite."
        )
    return False


def _refuse_itself(inputs: Sequence[RawMatrix | Part], path: Path) -> None:
    """Refuse to replace an input by its own store: it would be lost."""
    target = path.resolve()
    for part in inputs:
        if part.path is None or isinstance(part.path, BucketPlace):
            continue
        source = part.path.resolve()
        if source == target or target in source.parents:
            raise OutputError(f"{path} would replace the input {part.path}; choose another name.")
        if source in target.parents:
            raise OutputError(f"{path} lies inside the input {part.path}; choose another folder.")


def _refuse_columns(raw: RawMatrix, config: IngestConfig) -> None:
    """Refuse columns of the batch key before any pass: those that do not tell batches, and those a store cannot keep."""
    tech = tech_batches_of(raw, config)
    for column in () if tech is None else tech.columns:
        if column in _OURS or "/" in column:
            raise InputError(
                f"{raw.name}: a store cannot keep the batch column {column!r} under this name; rename it in the input."
            )


_OURS = (layout.TOTAL, layout.SOURCE_ROW, FILE_ROW)


def _observations(raw: RawMatrix, found: RawStatistics, columns: tuple[str, ...]) -> pd.DataFrame:
    ours = {layout.TOTAL: found.totals, layout.SOURCE_ROW: np.arange(raw.n_cells)}
    replaced = [name for name in ours if name in raw.obs]
    if replaced:
        logger.warning("%s: the columns %s of obs are replaced by those of this store", raw.name, ", ".join(replaced))
    return as_categories(raw.obs, columns).assign(**ours)


def fingerprint(raw: RawMatrix | Part) -> dict[str, Any]:
    """Describe an input so that a changed one can be told.

    Parameters
    ----------
    raw
        The input.

    Returns
    -------
    dict
        Name, matrix, cells, genes, stored values, SHA-256 of the gene names; for a file its bytes and time; ``names``, a digest of the
        files of names beside a single Matrix Market file; where obs says which cells are taken ``taken``, SHA-256 of their rows.
    """
    about: dict[str, Any] = {
        "name": raw.name,
        "matrix": raw.matrix,
        "n_cells": raw.n_cells,
        "n_genes": raw.n_genes,
        "n_stored": raw.n_stored,
        "genes_sha256": sha256_of("\n".join(raw.gene_names)),
    }
    if isinstance(raw, Part) and raw.taken is not None:
        about["taken"] = raw.taken
    if isinstance(raw.path, BucketPlace):
        n_bytes, etag, is_object = stamp_of(raw.path)
        about |= {"bytes": n_bytes if is_object else None, "etag": etag}
    elif raw.path is not None:
        status = raw.path.stat()
        about |= {"bytes": status.st_size if raw.path.is_file() else None, "modified_ns": status.st_mtime_ns}
    beside = None if raw.path is None else stamp_beside(raw.path)
    return about if beside is None else about | {"names": beside}


def _files(raw: RawMatrix | Part) -> str | None:
    """Digest of names, sizes and times of all files of a folder: its own time does not tell when a chunk changes."""
    if raw.path is None or isinstance(raw.path, BucketPlace) or raw.path.is_file():
        return None  # the etag of a folder of objects is one of all of them
    files = [(path.relative_to(raw.path), path.stat()) for path in sorted(raw.path.rglob("*"))]
    return sha256_of(*(f"{name} {status.st_size} {status.st_mtime_ns}\n" for name, status in files))
