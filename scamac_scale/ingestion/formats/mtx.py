"""Matrix Market folders as rows of cells: names, types of features, genomes, and parts of a matrix that holds several.

Read as ``scanpy.read_10x_mtx`` does: symbols as names, made unique; features other than genes are left out.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.formats.features import KINDS, gene_expression, genomes_of, warn_of_genomes
from scamac_scale.ingestion.formats.market import Header, read_entries, read_header
from scamac_scale.ingestion.formats.text import read_names_table
from scamac_scale.ingestion.formats.transpose import Entries, TransposedRows, Unsorted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.ingestion.formats.mtx_files import MatrixFiles

logger = logging.getLogger(__name__)

FRY_PARTS = {"spliced": ("",), "unspliced": ("-U",), "ambiguous": ("-A",), "X": ("", "-A")}
"""Of the columns of alevin-fry, each gene of which has three: which of their endings a matrix sums."""


class OpenedMatrix(NamedTuple):
    """A matrix of text files.

    Attributes
    ----------
    rows
        Reads cells by genes.
    var
        One row for each gene: ``gene_symbols`` and, where there are any, ``gene_ids``.
    obs
        No columns; names of the cells as its index.
    """

    rows: TransposedRows
    var: pd.DataFrame
    obs: pd.DataFrame


def open_mtx(files: MatrixFiles, name: str, matrix: str) -> OpenedMatrix:
    """Open a matrix of text files.

    Parameters
    ----------
    files
        Of `find_matrix`.
    name
        Of the input, for messages.
    matrix
        ``X``, the name of another matrix of the same cells (``spliced``), or a genome.

    Returns
    -------
    OpenedMatrix
        Values are read at the first read, once, and sorted by cells.

    Raises
    ------
    InputError
        If a header is none, names do not fit the matrix, there is no such matrix, or it holds no genes.
    """
    import pandas as pd

    path = files.matrices.get(matrix) or files.matrices.get("X")
    if path is None:
        raise _no_such(name, matrix, files.matrices)
    header = read_header(path)
    n_most = max(header.n_rows, header.n_columns)
    table = read_names_table(files.genes, n_most)
    cells = [line[0] for line in read_names_table(files.cells, n_most)]
    is_by_cells = _is_by_cells(header, len(table), len(cells), files, path)
    var, target = _features(table, files, name, matrix)
    rows = _rows(path, header, target, len(var), is_by_cells=is_by_cells)
    return OpenedMatrix(rows, var, pd.DataFrame(index=pd.Index(cells, dtype=object)))


def _no_such(name: str, matrix: str, known: dict[str, Path], genomes: tuple[str, ...] = ()) -> InputError:
    told = ", ".join([*sorted(known), *genomes])
    if matrix == "X":
        return InputError(f"{name} has no matrix.mtx; say where the values lie with ingest.matrix: {told}.")
    return InputError(f"{name} has no matrix {matrix!r} (ingest.matrix); known are {told}.")


def _is_by_cells(header: Header, n_genes: int, n_cells: int, files: MatrixFiles, path: Path) -> bool:
    """Tell whether cells are the rows: by the sizes, where these tell."""
    by_genes = (header.n_rows, header.n_columns) == (n_genes, n_cells)
    by_cells = (header.n_rows, header.n_columns) == (n_cells, n_genes)
    if not by_genes and not by_cells:
        raise InputError(
            f"{path} has {header.n_rows:,} rows and {header.n_columns:,} columns, but {files.genes.name} names {n_genes:,} genes and "
            f"{files.cells.name} {n_cells:,} cells; the files are of different samples, were cut off, or begin with a heading."
        )
    if by_genes == by_cells:
        return files.is_by_cells
    if by_cells != files.is_by_cells:
        logger.info("%s has cells in its %s", path, "rows" if by_cells else "columns")
    return by_cells


def _features(
    table: list[list[str]], files: MatrixFiles, name: str, matrix: str
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Make the table of genes, and (F,) the gene of each feature, -1 for none."""
    import pandas as pd

    n_columns = _width(table, files.genes)
    ids = [line[0] for line in table]
    symbols = [line[1] or line[0] for line in table] if n_columns > 1 else ids
    if n_columns == 1:
        _refuse_other_separators(ids, files.genes)
    if n_columns == 1 and (parts := _fry_parts(ids, matrix, files.genes)) is not None:
        genes, target = parts
        logger.info(
            "%s holds spliced, unspliced and ambiguous counts; %s is read",
            name,
            "spliced + ambiguous" if matrix == "X" else matrix,
        )
        return pd.DataFrame({"gene_symbols": genes}), target
    is_kept = np.ones(len(table), bool)
    if n_columns > 2:
        kinds = [line[2] for line in table]
        if KINDS.intersection(kinds):
            is_kept = gene_expression(kinds, name)
    genomes = np.array(genomes_of([one for one, keeps in zip(ids, is_kept, strict=True) if keeps]), dtype=object)
    counts = {str(key): int(n) for key, n in zip(*np.unique(genomes, return_counts=True), strict=True)}
    if matrix not in files.matrices:
        if matrix not in counts or not matrix:
            raise _no_such(name, matrix, files.matrices, tuple(key for key in counts if key))
        is_kept[is_kept] = genomes == matrix
    elif len(counts) > 1:
        warn_of_genomes(name, counts)
    var = pd.DataFrame({"gene_symbols": symbols, "gene_ids": ids} if n_columns > 1 else {"gene_symbols": symbols})
    return var[is_kept].reset_index(drop=True), np.where(is_kept, np.cumsum(is_kept) - 1, -1)


def _width(table: list[list[str]], path: Path) -> int:
    """Columns of all lines; the first three of which every line must have, if most have them."""
    counts = np.array([min(len(line), 3) for line in table], dtype=np.int64)
    usual = int(np.bincount(counts).argmax()) if len(counts) else 1
    if (counts < usual).any():
        at = int(np.argmax(counts < usual))
        raise InputError(
            f"{path}: line {at + 1} is {' '.join(table[at])!r:.80}, with {counts[at]} columns where others have {usual}; the file is damaged, copy it again."
        )
    return usual


def _fry_parts(names: list[str], matrix: str, path: Path) -> tuple[list[str], NDArray[np.int64]] | None:
    """Find the three columns that each gene of alevin-fry has, in any order; None where they are plain genes."""
    place = {name: at for at, name in enumerate(names)}
    genes = [name for name in names if f"{name}-U" in place and f"{name}-A" in place]
    own = {gene + end for gene in genes for end in ("", "-U", "-A")}
    if not genes or (len(own) < len(names) / 2 and len(names) > len(own)):
        return None  # a gene may be called HLA-A
    if own != set(names) or len(place) != len(names) or len(own) != 3 * len(genes):
        raise InputError(
            f"{path}: {len(genes):,} genes have three columns each, as alevin-fry writes them (GENE, GENE-U, GENE-A), and others of the "
            f"{len(names):,} have not; the file is damaged, copy or write it again."
        )
    wanted = FRY_PARTS.get(matrix)
    if wanted is None:
        raise InputError(
            f"no matrix {matrix!r} (ingest.matrix) is among the columns of alevin-fry; known are {', '.join(FRY_PARTS)}."
        )
    target = np.full(len(names), -1, np.int64)
    for end in wanted:
        target[[place[gene + end] for gene in genes]] = np.arange(len(genes))
    return genes, target


def _refuse_other_separators(names: list[str], path: Path) -> None:
    """Refuse a table whose columns are between commas, semicolons or spaces: all of a line would be the name of a gene."""
    for separator, what in ((",", "commas"), (";", "semicolons"), (" ", "spaces")):
        fields = [name.split(separator) for name in names]
        n_usual = int(np.median([len(line) for line in fields])) if fields else 1
        if n_usual > 1 and len({line[0] for line in fields}) > len(fields) / 2:
            raise InputError(
                f"{path}: line 1 is {names[0]!r:.80}, with {what} between its columns; expected tabs. Write it with tabs."
            )


def _rows(path: Path, header: Header, target: NDArray[np.int64], n_genes: int, *, is_by_cells: bool) -> TransposedRows:
    n_cells = header.n_rows if is_by_cells else header.n_columns
    name, dtype = str(path), np.dtype(np.int32 if header.is_whole else np.float32)

    def read() -> Iterator[Entries]:
        for rows, columns, values in read_entries(path, header):
            cells, features = (rows, columns) if is_by_cells else (columns, rows)
            genes = target[features]
            is_kept = genes >= 0
            if not is_kept.all():
                cells, genes, values = cells[is_kept], genes[is_kept], values[is_kept]
            yield Entries(cells, genes, _narrow(values, dtype, name))

    is_summed = len(target) != len(np.unique(target[target >= 0])) + int((target < 0).sum())
    why = "is a file of text"
    return TransposedRows(Unsorted(name, (n_cells, n_genes), header.n_values, dtype, why, read, is_summed=is_summed))


def _narrow(values: NDArray[np.float64], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Take values as 32 bits hold them; refuse those beyond."""
    largest = float(np.iinfo(np.int32).max if dtype.kind == "i" else np.finfo(np.float32).max)
    is_beyond = (values > largest) | (values < -largest)
    is_beyond &= np.isfinite(values) | (dtype.kind == "i")
    if is_beyond.any():
        raise InputError(
            f"{name} holds {values[np.argmax(is_beyond)]:g}; expected amounts of RNA, below {largest:g}. The file is damaged, write it again."
        )
    return values.astype(dtype)
