"""Which cells are taken, by what obs tells of them: a query, a list of names."""

from __future__ import annotations

import csv
import io
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import InputError
from scamac_scale.ingestion.lists import read_text, unquoted
from scamac_scale.ingestion.many.query import chosen_by
from scamac_scale.ingestion.raw import FILE, FILE_ROW
from scamac_scale.remote.place import is_url

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.config import IngestConfig

logger = logging.getLogger(__name__)

MAX_LIST_BYTES = 2**31
TOLD, MAX_DIGITS = 5, 18


class Asked(NamedTuple):
    """Cells that are taken.

    Attributes
    ----------
    picks
        (n,) rows, ascending.
    left_out
        Cells that are not, by the setting that leaves them out: ``where``, then ``cells``.
    """

    picks: NDArray[np.int64]
    left_out: dict[str, int]


def asked_cells(obs: pd.DataFrame, config: IngestConfig, name: str) -> Asked | None:
    """Find the cells that ``ingest.where`` and ``ingest.cells`` ask for.

    Parameters
    ----------
    obs
        N rows, with ``scamac_file``.
    config
        With `where` and `cells`.
    name
        Of the input, for messages.

    Returns
    -------
    Asked or None
        None where neither is given.

    Raises
    ------
    InputError
        If the query or the list cannot be used, or no cell is left.
    """
    if config.where is None and config.cells is None:
        return None
    is_taken, left_out = np.ones(len(obs), dtype=bool), {}
    if config.where is not None:
        found = chosen_by(config.where, obs, name)
        logger.info("%s: %d of %d cells by %s", name, found.sum(), len(obs), config.where)
        is_taken &= found
        left_out["where"] = int((~found).sum())
        if not found.any():
            raise InputError(f"{name}: no cell is left: ingest.where={config.where!r} holds for none of {len(obs):,}.")
    if config.cells is not None:
        listed = listed_cells(at_home(config.cells), obs, name)
        left_out["cells"] = int((is_taken & ~listed).sum())
        is_taken &= listed
    if not is_taken.any():
        raise InputError(
            f"{name}: no cell is left: none of {len(obs):,} is in {config.cells} and is one by ingest.where={config.where!r}."
        )
    return Asked(np.flatnonzero(is_taken), left_out)


def listed_cells(path: Path, obs: pd.DataFrame, name: str) -> NDArray[np.bool_]:
    """Mark the cells that a file lists.

    Parameters
    ----------
    path
        Text: a name of a cell in each line, or the input as ``scamac_file`` has it (its last parts will do) and the name, with a tab
        between them; or a table (commas or tabs) with a header and columns ``scamac_file`` and ``scamac_file_row``, such as obs of a
        result. Empty lines, those that begin with ``#``, and quotation marks around names count for nothing.
    obs
        N rows, with ``scamac_file`` and ``scamac_file_row``.
    name
        Of the input, for messages.

    Raises
    ------
    InputError
        If it cannot be read, names an input that is not there, no cell, or a cell by a name that several have.
    """
    text = read_text(path, "ingest.cells", MAX_LIST_BYTES, "give a text file with a name on each line")
    by_row = _table(text, path)
    by_file: dict[str, list[str]] = {}
    plain: list[str] = []
    for line in () if by_row is not None else dict.fromkeys(text.splitlines()):
        file, tab, cell = line.partition("\t")
        if not line.strip() or line.startswith("#"):
            continue
        if tab:
            by_file.setdefault(unquoted(file), []).append(unquoted(cell))
        else:
            plain.append(unquoted(line))
    asked = [*plain, *(f"{file}: {cell}" for file, cells in (by_row or by_file).items() for cell in cells)]
    if not asked:
        raise InputError(f"{path} (ingest.cells) names no cell.")
    is_taken = np.zeros(len(obs), dtype=bool)
    missing = _mark(plain, obs.index, np.arange(len(obs)), is_taken, str(path))
    numbers = _file_numbers(list(by_row or by_file), obs, path)
    codes, rows_there = obs[FILE].cat.codes.to_numpy(), obs[FILE_ROW].to_numpy()
    for file, cells in by_file.items():
        rows = np.flatnonzero(codes == numbers[file])
        missing += [f"{file}: {cell}" for cell in _mark(cells, obs.index[rows], rows, is_taken, f"{path}: {file}")]
    for file, places in (by_row or {}).items():
        rows = np.flatnonzero(codes == numbers[file])
        is_taken[rows[np.isin(rows_there[rows], places)]] = True
        missing += [f"{file}: row {place}" for place in np.setdiff1d(places, rows_there[rows]).tolist()]
    if not is_taken.any():
        raise InputError(
            f"none of the {len(asked):,} cells that {path} (ingest.cells) names is in {name}; it names {asked[0]!r}, and the first cell is "
            f"{str(obs.index[0])!r}."
        )
    if missing:
        more = ", ..." if len(missing) > TOLD else ""
        logger.warning(
            "%s: %d of the %d cells that %s names are not there: %s%s",
            name,
            len(missing),
            len(asked),
            path,
            ", ".join(missing[:TOLD]),
            more,
        )
    return is_taken


def _mark(
    cells: list[str], index: pd.Index[str], rows: NDArray[np.int64], is_taken: NDArray[np.bool_], where: str
) -> list[str]:
    """Mark cells by their names; returns those that are not there."""
    import pandas as pd

    wanted = pd.Index(cells, dtype=object)
    at = np.flatnonzero(index.isin(wanted))
    found = index[at]
    repeated = found[found.duplicated()]
    if len(repeated):
        raise InputError(
            f"{where} (ingest.cells) names {str(repeated[0])!r}, as {int((found == repeated[0]).sum())} cells are called; write the input, a "
            "tab and the name, or a table of scamac_file and scamac_file_row."
        )
    is_taken[rows[at]] = True
    return wanted[~wanted.isin(found)].tolist()


def _table(text: str, path: Path) -> dict[str, list[int]] | None:
    """Read rows of inputs from a table whose header has `FILE` and `FILE_ROW`; None where it is none."""
    first = text.partition("\n")[0]
    delimiter = "\t" if "\t" in first else ","
    try:
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        header = [unquoted(column) for column in next(table, [])]
        if not {FILE, FILE_ROW} <= set(header):
            return None
        at_file, at_row = header.index(FILE), header.index(FILE_ROW)
        shift: int | None = None  # R leaves out the name of the column of names
        found: dict[str, list[int]] = {}
        for row in table:
            if not any(row):
                continue
            shift = len(row) - len(header) if shift is None else shift
            place = row[at_row + shift].strip()
            if not place.isdecimal() or len(place) > MAX_DIGITS or shift not in (0, 1):
                raise ValueError(f"{FILE_ROW} is {place!r}")
            found.setdefault(row[at_file + shift].strip(), []).append(int(place))
    except (csv.Error, IndexError, ValueError) as error:
        raise InputError(
            f"{path} (ingest.cells) is no table of {FILE} and {FILE_ROW}: line {table.line_num} cannot be read ({error})."
        ) from error
    return found


def _is_same(name: str, given: str) -> bool:
    """Whether a name is that of an input, or its last parts: whole ones."""
    known, wanted = name.rstrip("/").split("/"), given.rstrip("/").split("/")
    if known[-len(wanted) :] == wanted:
        return True
    return not is_url(name) and os.path.abspath(name) == os.path.abspath(given)


def _file_numbers(files: list[str], obs: pd.DataFrame, path: Path) -> dict[str, int]:
    """Find the number of the input that each name means, in the order of the categories."""
    known = list(map(str, obs[FILE].cat.categories))
    found = {}
    for file in files:
        same = [number for number, name in enumerate(known) if name == file]
        same = same or [number for number, name in enumerate(known) if _is_same(name, file)]
        if len(same) != 1:
            what = "no input" if not same else f"{len(same)} inputs"
            raise InputError(
                f"{path} (ingest.cells) names cells of {file!r}, which is {what}; there are {', '.join(known[:TOLD])}"
                f"{', ...' if len(known) > TOLD else ''}."
            )
        found[file] = same[0]
    return found
