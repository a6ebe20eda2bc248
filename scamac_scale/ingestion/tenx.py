"""10x Genomics HDF5 files, Cell Ranger 2 and 3 or later: genes by cells as CSC, so cells by genes as CSR.

Read as scanpy reads them: gene symbols as names, repeated ones made unique, features other than gene expression left out. Of several
genomes all are read, which the log says, or one that is named.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.arrays import check_names, part_of
from scamac_scale.ingestion.chunks import refuse_gaps
from scamac_scale.ingestion.rows import JoinedRows, SparseRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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


def open_tenx(file: Group, name: str, matrix: str) -> tuple[tuple[str, ...], Rows, Callable[[], pd.DataFrame]]:
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
    genes
        (G,) unique gene names.
    rows
        Reads cells by genes.
    read_obs
        Reads a table without columns, barcodes as its index.

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
        _warn_of_genomes(name, {genome: len(file[genome]["gene_names"]) for genome in genomes})
    picked = genomes if matrix == "X" else [matrix]
    opened = [_open_two(file[genome], f"{name}: {genome}") for genome in picked]
    names = [gene for genes, _ in opened for gene in genes]
    rows: Rows = opened[0][1] if len(opened) == 1 else _beside(file, picked, [rows for _, rows in opened], name)
    return _unique(names, name), rows, lambda: _barcodes(file[picked[0]], f"{name}: {picked[0]}")


def _open_three(group: Group, name: str, matrix: str) -> tuple[tuple[str, ...], Rows, Callable[[], pd.DataFrame]]:
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
        _warn_of_genomes(name, counts)
    rows = _rows(group, f"{name}: matrix", len(names))
    if not is_kept.all():
        kept = np.where(is_kept, np.cumsum(is_kept) - 1, -1)
        rows = SparseRows(rows.indptr, rows.indices, rows.data, rows.n_genes, rows.name, kept)
        names = [gene for gene, keeps in zip(names, is_kept.tolist(), strict=True) if keeps]
    return _unique(names, name), rows, lambda: _barcodes(group, f"{name}: matrix")


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


def _warn_of_genomes(name: str, counts: Mapping[str, int]) -> None:
    told = ", ".join(f"{genome} ({n} genes)" for genome, n in counts.items())
    logger.warning(
        "%s holds %d genomes, %s; the genes of all are read. Cells of one species have zeros in the other: to read one, "
        "ingest.matrix=%s",
        name,
        len(counts),
        told,
        next(iter(counts)),
    )


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
    is_gene = np.array([kind == "Gene Expression" for kind in kinds], dtype=bool)
    if is_gene.shape != (n_features,):
        raise InputError(f"{name}: {n_features} features with {len(is_gene)} types; the file is damaged.")
    if not is_gene.any():
        raise InputError(f"{name} holds no gene expression; none of its {n_features} features has that type.")
    if not is_gene.all():
        logger.info("%s: %d features that are not gene expression are left out", name, int((~is_gene).sum()))
    return is_gene


def _genome_of(features: Group, n_features: int, name: str) -> NDArray[np.object_]:
    """(F,) genome of each feature, empty where none is noted."""
    if "genome" not in features:
        return np.full(n_features, "", dtype=object)
    genome = np.array(_strings(features, "genome", f"{name}: matrix/features"), dtype=object)
    if genome.shape != (n_features,):
        raise InputError(f"{name}: {n_features} features with {len(genome)} genomes; the file is damaged.")
    return genome


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


def _barcodes(group: Group, name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(index=pd.Index(_strings(group, "barcodes", name), dtype=object))
