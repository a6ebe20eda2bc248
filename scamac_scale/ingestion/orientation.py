"""Whether the table is what it is taken for: cells in rows, and cells rather than empty droplets."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

LOOKED_AT = 5000
"""Names that are looked at, spread over all."""
MOST = 0.5
"""Share of names of one look from which on all are taken to be of that kind."""
FEW_SYMBOLS = 5
"""Genes that nearly every table of people or mice has: so many among the names of cells are no chance."""
FEW_STEMS = 0.25
"""Names that are numbered, as those of cells and wells are, differ in fewer stems than this share."""
FEW_COUNTS = 10
"""A droplet with fewer counts held no cell."""
FEW_CELLS = 50
"""Of fewer cells nothing is said."""

_GENE_ID = re.compile(
    r"ENS[A-Z]{0,4}[GT]\d{6,}(\.\d+)?|FBgn\d{7}|WBGene\d{8}|AT[1-5CM]G\d{5}|Y[A-P][LR]\d{3}[WC](-[A-Z])?|ZDB-GENE-\d+-\d+",
    re.IGNORECASE,
)
BARCODE = re.compile(r"(.*[^A-Za-z])?[ACGTN]{10,}([^A-Za-z].*)?")
"""Of a cell or a droplet, with what programs put around it."""
_SYMBOL = re.compile(
    "ACTB|ACTG1|B2M|CALM1|CD3D|CD3E|CD74|CST3|EEF1A1|EEF2|EPCAM|FAU|FTH1|FTL|GAPDH|GNLY|H3F3A|HBA1|HBB|HMGB1|HSP90AA1|HSPA5|HSPA8|"
    "LGALS1|LYZ|MALAT1|MKI67|MS4A1|MYL6|NEAT1|NKG7|NPM1|PABPC1|PECAM1|PPBP|PPIA|PTPRC|S100A8|S100A9|TMSB10|TMSB4X|TPT1|TUBA1B|TUBB|"
    r"UBA52|UBB|UBC|VIM|XIST|MT-[A-Z0-9]+|RP[LS]\d+[AXYL]?|RPLP[0-2]|RPSA|NDUF[ABSV]\d+|COX\d[A-Z]\d?|EIF\d[A-Z]\d?",
    re.IGNORECASE,
)

_LIKE_SYMBOL = re.compile(r"(?![ACGTN]{6,}([-.]|$))[A-Za-z][A-Za-z0-9]{0,11}([-.][A-Za-z0-9]{1,6}){0,2}")
_DIGITS = re.compile(r"\d+")


def refuse_genes_as_rows(cells: Sequence[str] | pd.Index[str], genes: Sequence[str], name: str) -> None:
    """Refuse a table whose rows are genes and whose columns are cells, by their names.

    Parameters
    ----------
    cells, genes
        Names of rows and columns.
    name
        Of the file, for the message.

    Raises
    ------
    InputError
        If most names of cells look like genes (identifiers, or symbols), and those of genes do not.

    Notes
    -----
    Only a warning where that may be right: rows that do not look like genes beside barcodes (guides have such names, too), and rows that do
    beside numbers (pseudobulks of perturbed genes, and genes of NCBI).
    """
    are_genes, have_barcodes = _look(tuple(genes))
    if are_genes:
        return
    rows, columns = _spread(cells), _spread(genes)
    if have_barcodes and _share(BARCODE, rows) > MOST:
        return
    are_rows_genes = _are_genes(cells, rows, have_stems=have_barcodes)
    if not (are_rows_genes or have_barcodes) or not rows:
        return
    symbols = _symbols(cells)
    example = next((row for row in rows if _GENE_ID.fullmatch(row)), symbols[0] if symbols else rows[0])
    told = (
        f"{name}: genes seem to be in rows: its {len(cells):,} cells have names like {example!r}, its {len(genes):,} genes like "
        f"{columns[0]!r}. Turn it round: adata = adata.T, then adata.write_h5ad(...)"
    )
    are_positions = columns[0] in {"0", "1"} and columns[-1] == str(int(columns[0]) + len(genes) - 1)
    are_numbers = all(map(str.isdecimal, columns)) and not are_positions
    if not are_rows_genes or are_numbers:
        logger.warning("%s; it is taken as it is", told)
        return
    raise InputError(f"{told}; if it is right as it is, give cells and genes other names.")


@lru_cache(maxsize=2)  # many files have the same genes
def _look(genes: tuple[str, ...]) -> tuple[bool, bool]:
    """Tell whether the names of columns look like genes, and whether they are barcodes."""
    columns = _spread(genes)
    return _are_genes(genes, columns, have_stems=True), _share(BARCODE, columns) > MOST


def _are_genes(names: Sequence[str] | pd.Index[str], some: list[str], *, have_stems: bool) -> bool:
    """Tell whether most names look like genes: identifiers, or symbols, among them such as every table has or else of many stems.

    Parameters
    ----------
    names, some
        All, and those that are looked at.
    have_stems
        Whether many stems are enough.
    """
    if _share(_GENE_ID, some) > MOST:
        return True
    if _share(_LIKE_SYMBOL, some) <= MOST:
        return False
    n_stems = len({_DIGITS.sub("", name) for name in some})
    return len(_symbols(names)) >= FEW_SYMBOLS or (have_stems and n_stems > FEW_STEMS * len(some))


def _spread(names: Sequence[str] | pd.Index[str]) -> list[str]:
    """Take some names, from all over the table."""
    at = np.linspace(0, len(names) - 1, min(len(names), LOOKED_AT)).astype(int)
    return [str(names[i]) for i in at.tolist()]


def _share(pattern: re.Pattern[str], names: list[str]) -> float:
    return sum(pattern.fullmatch(name) is not None for name in names) / max(len(names), 1)


def _symbols(names: Sequence[str] | pd.Index[str]) -> list[str]:
    """Names of genes that nearly every table has; at most a few of millions."""
    if len(names) > 10**6:  # no table has so many genes
        return []
    return [name for name in map(str, names) if _SYMBOL.fullmatch(name)]


def warn_of_droplets(totals: NDArray[Any], kind: str, name: str) -> None:
    """Warn of a table of all droplets, most of which held no cell.

    Parameters
    ----------
    totals
        (N,) total of each cell.
    kind
        Of the values; only counts tell.
    name
        Of the file, for the message.
    """
    if kind != "counts" or len(totals) < FEW_CELLS:
        return
    n_empty = int(np.count_nonzero(np.asarray(totals) < FEW_COUNTS))
    if n_empty * 2 > len(totals):
        logger.warning(
            "%s: %s of %s cells (%.0f %%) have fewer than %d counts: these are empty droplets, not cells. Take the filtered matrix "
            "(filtered_feature_bc_matrix.h5), or leave out cells of few counts first: sc.pp.filter_cells(adata, min_counts=...)",
            name,
            f"{n_empty:,}",
            f"{len(totals):,}",
            100 * n_empty / len(totals),
            FEW_COUNTS,
        )
