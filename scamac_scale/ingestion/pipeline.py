"""Raw data to a training store: three streamed passes (check, sum, write)."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.atomic import check_output
from scamac_scale.config import IngestConfig
from scamac_scale.errors import OutputError, choose
from scamac_scale.ingestion.normalise import GeneColumns
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.raw import read_blocks
from scamac_scale.ingestion.statistics import measure
from scamac_scale.store import layout
from scamac_scale.store.writer import StoreHeader, write_store

if TYPE_CHECKING:
    import os

    import pandas as pd
    from anndata import AnnData

    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.ingestion.statistics import RawStatistics

logger = logging.getLogger(__name__)


def ingest(
    data: str | os.PathLike[str] | AnnData,
    out: str | os.PathLike[str],
    config: IngestConfig | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Turn raw data into a training store.

    Parameters
    ----------
    data
        An h5ad, an AnnData zarr or a 10x h5, or an AnnData in memory.
    out
        Folder of the store.
    config
        How the data is read, and how many genes are kept; None takes the defaults.
    overwrite
        Whether an existing zarr folder is replaced; it stays until the new one is complete.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    OutputError
        If `out` is there already, cannot be written, or holds the input; checked before any work. Nothing is left behind.
    InputError
        If the data cannot be used.

    Notes
    -----
    Reads the data three times. Memory is a few blocks of ``config.block_cells`` cells, `store.shuffle.SHUFFLE_BYTES`, 48 bytes
    per cell, and `obs`. While it shuffles, the disk holds the store twice.
    """
    config = config or IngestConfig()
    choose(layout.PROFILES, config.profile, "ingest.profile")
    path = check_output(Path(out), overwrite=overwrite)
    with open_raw(data, config.matrix) as raw:
        _refuse_itself(raw, path)
        found = measure(raw, config)
        columns = GeneColumns.locate(found.gene_space, raw.gene_names)
        header = StoreHeader(
            gene_space=found.gene_space,
            value_dtype=layout.value_dtype(found.gene_space.kind, found.largest),
            n_values=found.n_stored,
            config=config,
            inputs=(fingerprint(raw),),
        )
        blocks = (columns.raw_values(block) for _, block in read_blocks(raw, config.block_cells, "writing store"))
        write_store(path, blocks, header=header, obs=_observations(raw, found), var=found.var, overwrite=overwrite)
    return path


def _refuse_itself(raw: RawMatrix, path: Path) -> None:
    """Refuse to replace the input by its own store: it would be lost."""
    if raw.path is None:
        return
    source, target = raw.path.resolve(), path.resolve()
    if source == target or target in source.parents:
        raise OutputError(f"{path} would replace the input {raw.path}; choose another name.")
    if source in target.parents:
        raise OutputError(f"{path} lies inside the input {raw.path}; choose another folder.")


def _observations(raw: RawMatrix, found: RawStatistics) -> pd.DataFrame:
    ours = {layout.TOTAL: found.totals, layout.SOURCE_ROW: np.arange(raw.n_cells)}
    replaced = [name for name in ours if name in raw.obs]
    if replaced:
        logger.warning("%s: the columns %s of obs are replaced by those of this store", raw.name, ", ".join(replaced))
    return raw.obs.assign(**ours)


def fingerprint(raw: RawMatrix) -> dict[str, Any]:
    """Describe an input so that a changed one can be told.

    Parameters
    ----------
    raw
        The input.

    Returns
    -------
    dict
        Name, matrix, cells, genes, stored values, SHA-256 of the gene names, and for a file its bytes and time.
    """
    about: dict[str, Any] = {
        "name": raw.name,
        "matrix": raw.matrix,
        "n_cells": raw.n_cells,
        "n_genes": raw.n_genes,
        "n_stored": raw.n_stored,
        "genes_sha256": hashlib.sha256("\n".join(raw.gene_names).encode()).hexdigest(),
    }
    if raw.path is not None:
        status = raw.path.stat()
        about |= {"bytes": status.st_size if raw.path.is_file() else None, "modified_ns": status.st_mtime_ns}
    return about
