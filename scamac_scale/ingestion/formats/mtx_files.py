"""Which files of a folder belong to one Matrix Market matrix: of Cell Ranger 2 and 3, STARsolo, alevin-fry, kallisto, and of GEO."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple

from scamac_scale.durable.foreign import odd_kind
from scamac_scale.errors import InputError
from scamac_scale.ingestion.files import ROOT_FILES
from scamac_scale.ingestion.formats.text import read_names_table
from scamac_scale.ingestion.strangers import entries_below

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

logger = logging.getLogger(__name__)

SUFFIXES = (".mtx", ".mtx.gz")
GENE_FILES = ("features", "genes", "gene", "feature")
CELL_FILES = ("barcodes", "cells", "barcode")
USUAL = ("matrix", "quants_mat", "cells_x_genes")
"""Names of the matrix that is meant where several share their names."""
MOST_NAMES = 2**26
"""Lines of a file of names."""
TABLES = (".tsv", ".tsv.gz", ".txt", ".txt.gz")


class MatrixFiles(NamedTuple):
    """Files of one set of cells and genes.

    Attributes
    ----------
    matrices
        Each by its name; ``X`` is the one that is meant where none is named.
    genes, cells
        Names.
    is_by_cells
        Whether cells are the rows.
    """

    matrices: dict[str, Path]
    genes: Path
    cells: Path
    is_by_cells: bool


def is_market(path: Path) -> bool:
    """Tell whether a file is named as Matrix Market files are."""
    return path.name.endswith(SUFFIXES)


def find_market(path: Path) -> MatrixFiles | None:
    """Find the files of an input, if it is a Matrix Market file or a folder that holds some and is nothing else.

    Parameters and errors as of `find_matrix`.
    """
    try:
        if path.is_dir():
            if any(os.path.lexists(path / name) for name in ROOT_FILES):
                return None
        elif not is_market(path) or not path.is_file():
            return None
    except (OSError, ValueError):
        return None
    return find_matrix(path)


def find_matrix(path: Path) -> MatrixFiles | None:
    """Find a matrix and its names.

    Parameters
    ----------
    path
        A file ``.mtx`` or ``.mtx.gz``, or a folder that holds one, itself or below.

    Returns
    -------
    MatrixFiles or None
        None where a folder holds no such file.

    Raises
    ------
    InputError
        If there are several to choose from, names are missing, or a file is a link that leads out.
    """
    if path.is_file():
        return _of_file(path)
    try:
        here = [entry for entry in sorted(path.iterdir()) if is_market(entry)]
    except OSError as error:
        raise InputError(f"{path} cannot be listed: {error.strerror}.") from error
    if here:
        return _of_folder(path, here)
    found = list(entries_below(path))
    if any(name.name.endswith("feature_bc_matrix.h5") for name in found):
        return None  # the same in a better format
    below = [path / name for name in found if is_market(name)]
    folders = sorted({name.parent for name in below})
    if len(folders) > 1:
        kept = [folder for folder in folders if not folder.name.startswith("raw")]
        if len({folder.parent for folder in folders}) == 1 and len(kept) == 1:
            logger.info(
                "%s: %s is read; give %s to read what is not filtered", path, kept[0], _others(folders, kept[0])
            )
            folders = kept
    if not folders:
        return None
    if len(folders) > 1:
        raise InputError(
            f"{path} holds {len(folders)} folders of Matrix Market files; give one of them: {_listed(folders)}."
        )
    logger.info("%s: the Matrix Market files in %s are read", path, folders[0])
    return _of_folder(folders[0], [name for name in sorted(folders[0].iterdir()) if is_market(name)])


def _others(folders: Iterable[Path], kept: Path) -> str:
    return _listed([folder for folder in folders if folder != kept])


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:8])) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")


def _of_file(path: Path) -> MatrixFiles:
    """Take one file, with the names beside it and the matrices of the same names."""
    folder = path.parent
    found = _companions(path, _listing(folder))
    _refuse_links((found.genes, found.cells), folder)
    return found._replace(matrices={"X": path})


def _of_folder(folder: Path, matrices: list[Path]) -> MatrixFiles:
    """Take all matrices of a folder that share their names."""
    listing = _listing(folder)
    groups: dict[tuple[Path, Path], dict[str, Path]] = {}
    found = [_companions(path, listing) for path in matrices]
    for path, one in zip(matrices, found, strict=True):
        group = groups.setdefault((one.genes, one.cells), {})
        other = group.setdefault(next(iter(one.matrices)), path)
        if other is not path:
            raise InputError(
                f"{folder} holds {other.name} and {path.name}, two matrices of one name; give one of them, or take the other away."
            )
    if len(groups) > 1:
        raise InputError(
            f"{folder} holds {len(groups)} matrices with names of their own; give one of them: {_listed(matrices)}."
        )
    (genes, cells), named = groups.popitem()
    _refuse_links((genes, cells, *named.values()), folder)
    usual = [key for key in named if key in USUAL or len(named) == 1]
    if usual:
        named = {"X": named.pop(usual[0]), **named}
    return MatrixFiles(named, genes, cells, found[0].is_by_cells)


def _listing(folder: Path) -> dict[str, Path]:
    with os.scandir(folder) as entries:
        return {entry.name: folder / entry.name for entry in entries}


def _companions(path: Path, listing: dict[str, Path]) -> MatrixFiles:
    """Find the files of names that belong to a matrix; its key is what its name has beyond them."""
    if odd := odd_kind(path):
        raise InputError(f"{path} is {odd}, which is not opened.")
    stem = path.name.removesuffix(".gz").removesuffix(".mtx")
    for genes, cells in ((f"{stem}_cols", f"{stem}_rows"), (f"{stem}.genes", f"{stem}.barcodes")):
        of_genes, of_cells = (
            next((listing[name + end] for end in TABLES if name + end in listing), None) for name in (genes, cells)
        )
        if of_genes is not None and of_cells is not None:
            return MatrixFiles({stem: path}, of_genes, of_cells, is_by_cells=True)
    found = []
    for words, what in ((GENE_FILES, "genes (features.tsv.gz or genes.tsv)"), (CELL_FILES, "cells (barcodes.tsv.gz)")):
        named = [
            (len(prefix), listing[name], prefix)
            for name in sorted(listing)
            for word in words
            for end in TABLES
            if name.endswith(word + end) and stem.startswith(prefix := name.removesuffix(word + end))
        ]
        if not named:
            raise InputError(
                f"{path} has no names of its {what} beside it; a Matrix Market file holds numbers only. Put the three files of one "
                "sample into one folder."
            )
        best = max(named, key=lambda one: (one[0], one[1].name.endswith(".gz")))
        _refuse_rivals(best[1], [table for length, table, _ in named if length == best[0]], path)
        found.append(best)
    (n_common, of_genes, _), (n_own, of_cells, _) = found
    return MatrixFiles({stem[max(n_common, n_own) :]: path}, of_genes, of_cells, is_by_cells=False)


def _refuse_rivals(taken: Path, tables: list[Path], path: Path) -> None:
    """Refuse several files of names that fit a matrix alike, unless all name the same."""
    if len(tables) == 1:
        return
    _refuse_links(tables, path.parent)
    names = [line[:2] for line in read_names_table(taken, MOST_NAMES)]
    for table in tables:
        if table != taken and [line[:2] for line in read_names_table(table, MOST_NAMES)] != names:
            raise InputError(
                f"{taken} and {table.name} both fit {path.name}, and hold other names; leave the one that belongs to it."
            )
    logger.info("%s: %d files name the same, %s is read", path, len(tables), taken.name)


def _refuse_links(files: Iterable[Path], folder: Path) -> None:
    """Refuse files that lead out of their folder, and what is no file."""
    root = os.path.realpath(folder)
    for path in files:
        target = os.path.realpath(path)
        if path.is_symlink() and (not target.startswith(root + os.sep) or not os.path.exists(target)):
            raise InputError(
                f"{path} is a link that leads {'out of the folder' if os.path.exists(target) else 'to nothing'}, which is not followed; copy "
                "the data itself in (cp -rL, if you trust it)."
            )
        if odd := odd_kind(path):
            raise InputError(f"{path} is {odd}, which is not opened.")
        if path.is_dir():
            raise InputError(f"{path} is a folder, expected a file.")
