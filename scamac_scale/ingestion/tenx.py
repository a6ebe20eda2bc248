"""10x Genomics HDF5 files, Cell Ranger 2 and 3 or later: genes by cells as CSC, so cells by genes as CSR.

Read as scanpy reads them: gene symbols as names, repeated ones made unique, features other than gene expression left out.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.rows import SparseRows

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

logger = logging.getLogger(__name__)

Group = Any
"""An h5py group."""


def is_tenx(file: Group) -> bool:
    """Tell whether an HDF5 file is a 10x matrix, by what is inside."""
    return "obs" not in file and ("matrix" in file or bool(_genomes(file)))


def _genomes(file: Group) -> list[str]:
    return [key for key in file if hasattr(file[key], "keys") and "gene_names" in file[key] and "barcodes" in file[key]]


def open_tenx(file: Group, name: str, matrix: str) -> tuple[tuple[str, ...], SparseRows, Callable[[], pd.DataFrame]]:
    """Open the matrix of a 10x file.

    Parameters
    ----------
    file
        An open h5py file for which `is_tenx` holds.
    name
        Its path, for messages.
    matrix
        Must be ``X``: there is only one.

    Returns
    -------
    genes
        (G,) unique gene names.
    rows
        Reads cells by genes.
    read_obs
        Reads a table without columns, barcodes as its index.

    Raises
    ------
    InputError
        If another matrix is asked for, there is more than one genome (version 2), no gene expression, or a part is
        missing or damaged.
    """
    if matrix != "X":
        raise InputError(f"{name} is a 10x file with a single matrix; ingest.matrix={matrix!r} must be X.")
    if "matrix" in file:
        group = file["matrix"]
        names = _strings(group["features"]["name"])
        kept = _gene_expression(group["features"], len(names), name)
    else:
        genomes = _genomes(file)
        if len(genomes) > 1:
            raise InputError(f"{name} holds {len(genomes)} genomes ({', '.join(genomes)}); write one file for each.")
        group = file[genomes[0]]
        names = _strings(group["gene_names"])
        kept = None
    n_genes, n_cells = (int(n) for n in group["shape"][:])
    rows = SparseRows.check((group["indptr"], group["indices"], group["data"]), (n_cells, n_genes), name)
    if n_genes != len(names):
        raise InputError(f"{name}: {len(names)} genes are named, but the matrix has {n_genes}; the file is damaged.")
    if kept is not None:
        rows = SparseRows(rows.indptr, rows.indices, rows.data, n_genes, name, kept)
        names = [gene for gene, column in zip(names, kept, strict=True) if column >= 0]
    return _unique(names, name), rows, lambda: _barcodes(group)


def _strings(values: Group) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values[:]]


def _gene_expression(features: Group, n_features: int, name: str) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    if "feature_type" not in features:
        return None
    is_gene = np.array([kind == "Gene Expression" for kind in _strings(features["feature_type"])], dtype=bool)
    if is_gene.shape != (n_features,):
        raise InputError(f"{name}: {n_features} features with {len(is_gene)} types; the file is damaged.")
    if is_gene.all():
        return None
    if not is_gene.any():
        raise InputError(f"{name} holds no gene expression; none of its {n_features} features has that type.")
    logger.info("%s: %d features that are not gene expression are left out", name, int((~is_gene).sum()))
    return np.where(is_gene, np.cumsum(is_gene) - 1, -1)


def _unique(names: list[str], name: str) -> tuple[str, ...]:
    import pandas as pd
    from anndata.utils import make_index_unique

    index = pd.Index(names)
    if index.is_unique:
        return tuple(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that such names are hard to read; the log says it too
        unique = make_index_unique(index)
    changed = [after for before, after in zip(index, unique, strict=True) if before != after]
    logger.info("%s: %d genes share a name and were made unique, such as %s", name, len(changed), changed[0])
    return tuple(unique)


def _barcodes(group: Group) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(index=pd.Index(_strings(group["barcodes"]), dtype=object))
