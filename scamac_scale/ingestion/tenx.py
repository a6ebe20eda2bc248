"""10x Genomics HDF5 files, Cell Ranger 2 and 3 or later: genes by cells as CSC, so cells by genes as CSR.

Read as scanpy reads them: gene symbols as names, repeated ones made unique, features other than gene expression left out. Of several
genomes all are read, which the log says, or one that is named.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.arrays import check_names, part_of
from scamac_scale.ingestion.chunks import refuse_gaps
from scamac_scale.ingestion.formats.features import gene_expression, unique_names, warn_of_genomes
from scamac_scale.ingestion.rows import JoinedRows, SparseRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.ingestion.rows import Rows

logger = logging.getLogger(__name__)

Group = Any
"""An h5py group."""


def is_tenx(file: Group) -> bool:
    """Tell whether an HDF5 file is a 10x matrix, by what is inside."""
    return "obs" not in file and ("matrix" in file or bool(_genomes(file)))


def _genomes(file: Group) -> list[str]:
    return [key for key in file if hasattr(file[key], "keys") and "gene_names" in file[key] and "barcodes" in file[key]]


class OpenedTenx(NamedTuple):
    """A matrix of a 10x file: rows of cells, the table of genes with symbols and identifiers, and how names of cells are read."""

    rows: Rows
    var: pd.DataFrame
    read_obs: Callable[[], pd.DataFrame]


def open_tenx(file: Group, name: str, matrix: str) -> OpenedTenx:
    """Open the matrix of a 10x file.

    Parameters
    ----------
    file
        An open h5py file for which `is_tenx` holds.
    name
        Its path, for messages.
    matrix
        ``X``, of which there is only one; or a genome, to read its genes alone.

    Returns
    -------
    OpenedTenx
        ``var`` has unique symbols as its index; ``read_obs`` reads a table without columns, barcodes as its index.

    Raises
    ------
    InputError
        If another matrix is asked for, genomes are of different cells (version 2), there is no gene expression, or a part is
        missing or damaged.
    """
    if "matrix" in file:
        return _open_three(file["matrix"], name, matrix)
    genomes = _genomes(file)
    if matrix != "X" and matrix not in genomes:
        raise _no_such_matrix(name, matrix, genomes)
    if matrix == "X" and len(genomes) > 1:
        warn_of_genomes(name, {genome: len(file[genome]["gene_names"]) for genome in genomes})
    picked = genomes if matrix == "X" else [matrix]
    opened = [_open_two(file[genome], f"{name}: {genome}") for genome in picked]
    names = [gene for genes, _ in opened for gene in genes]
    rows: Rows = opened[0][1] if len(opened) == 1 else _beside(file, picked, [rows for _, rows in opened], name)
    ids = [gene for genome in picked for gene in _ids(file[genome], "genes", f"{name}: {genome}")]
    var = _var(names, ids, name)
    return OpenedTenx(rows, var, lambda: _barcodes(file[picked[0]], f"{name}: {picked[0]}"))


def _ids(group: Group, key: str, name: str) -> list[str]:
    """Read identifiers, where there are any."""
    return _strings(group, key, name) if key in group else []


def _var(names: list[str], ids: list[str], name: str) -> pd.DataFrame:
    import pandas as pd

    columns = {"gene_symbols": names} | ({"gene_ids": ids} if len(ids) == len(names) else {})
    return pd.DataFrame(columns, index=pd.Index(unique_names(names, name), dtype=object))


def _open_three(group: Group, name: str, matrix: str) -> OpenedTenx:
    """Open a file of Cell Ranger 3 or later: features of several kinds, and genomes, in one matrix."""
    if not hasattr(group, "keys") or not hasattr(group.get("features"), "keys"):
        raise InputError(f"{name} has no group matrix with features; the file is damaged, write it again.")
    names = _strings(group["features"], "name", f"{name}: matrix/features")
    is_kept = _gene_expression(group["features"], len(names), name)
    genome = _genome_of(group["features"], len(names), name)
    counts = {str(key): int(n) for key, n in zip(*np.unique(genome[is_kept], return_counts=True), strict=True)}
    if matrix != "X":
        if matrix not in counts:
            raise _no_such_matrix(name, matrix, counts)
        is_kept &= genome == matrix
    elif len(counts) > 1:
        warn_of_genomes(name, counts)
    rows = _rows(group, f"{name}: matrix", len(names))
    ids = _ids(group["features"], "id", f"{name}: matrix/features")
    ids = ids if len(ids) == len(names) else names
    if not is_kept.all():
        kept = np.where(is_kept, np.cumsum(is_kept) - 1, -1)
        rows = SparseRows(rows.indptr, rows.indices, rows.data, rows.n_genes, rows.name, kept)
        names, ids = (
            [gene for gene, keeps in zip(some, is_kept.tolist(), strict=True) if keeps] for some in (names, ids)
        )
    return OpenedTenx(rows, _var(names, ids, name), lambda: _barcodes(group, f"{name}: matrix"))


def _open_two(group: Group, name: str) -> tuple[list[str], SparseRows]:
    """Open one genome of a file of Cell Ranger 2."""
    names = _strings(group, "gene_names", name)
    return names, _rows(group, name, len(names))


def _rows(group: Group, name: str, n_named: int) -> SparseRows:
    shape = part_of(group, "shape", name)
    if shape.shape != (2,) or shape.dtype.kind not in "iu":
        raise InputError(f"{name}/shape is not two whole numbers; the file is damaged, write it again.")
    n_genes, n_cells = (int(n) for n in shape[:])
    parts = part_of(group, "indptr", name), part_of(group, "indices", name), part_of(group, "data", name)
    for key, part in zip(("indptr", "indices", "data"), parts, strict=True):
        refuse_gaps(part, f"{name}/{key}")
    barcodes = part_of(group, "barcodes", name)
    if tuple(barcodes.shape) != (n_cells,):
        raise InputError(
            f"{name}: {tuple(barcodes.shape)} barcodes for {n_cells:,} cells; the file is damaged, write it again."
        )
    rows = SparseRows.check(parts, (n_cells, n_genes), name)
    if n_genes != n_named:
        raise InputError(f"{name}: {n_named} genes are named, but the matrix has {n_genes}; the file is damaged.")
    return rows


def _beside(file: Group, genomes: list[str], parts: list[SparseRows], name: str) -> JoinedRows:
    """Put genomes beside each other, which must be of the same cells."""
    first = _barcodes(file[genomes[0]], f"{name}: {genomes[0]}").index
    for genome in genomes[1:]:
        if not first.equals(_barcodes(file[genome], f"{name}: {genome}").index):
            raise InputError(
                f"{name} holds {len(genomes)} genomes ({', '.join(genomes)}) of different cells; choose one with "
                f"ingest.matrix={genomes[0]}."
            )
    return JoinedRows(tuple(parts))


def _no_such_matrix(name: str, matrix: str, genomes: Iterable[str]) -> InputError:
    known = [genome for genome in genomes if genome]
    choice = f", or a genome: {', '.join(known)}" if known else ""
    return InputError(f"{name} is a 10x file with a single matrix; ingest.matrix={matrix!r} must be X{choice}.")


def _strings(group: Group, key: str, name: str) -> list[str]:
    values = part_of(group, key, name)
    check_names(values, f"{name}/{key}")
    refuse_gaps(values, f"{name}/{key}")
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values[:]]


def _gene_expression(features: Group, n_features: int, name: str) -> NDArray[np.bool_]:
    """(F,) which features are genes."""
    if "feature_type" not in features:
        return np.ones(n_features, dtype=bool)
    kinds = _strings(features, "feature_type", f"{name}: matrix/features")
    if len(kinds) != n_features:
        raise InputError(f"{name}: {n_features} features with {len(kinds)} types; the file is damaged.")
    return gene_expression(kinds, name)


def _genome_of(features: Group, n_features: int, name: str) -> NDArray[np.object_]:
    """(F,) genome of each feature, empty where none is noted."""
    if "genome" not in features:
        return np.full(n_features, "", dtype=object)
    genome = np.array(_strings(features, "genome", f"{name}: matrix/features"), dtype=object)
    if genome.shape != (n_features,):
        raise InputError(f"{name}: {n_features} features with {len(genome)} genomes; the file is damaged.")
    return genome


def _barcodes(group: Group, name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(index=pd.Index(_strings(group, "barcodes", name), dtype=object))
