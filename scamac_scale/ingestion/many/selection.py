"""Which cells are taken, by what obs tells of them: a query, a list of names."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.durable.foreign import at_home
from scamac_scale.durable.plain import read_plain
from scamac_scale.errors import InputError
from scamac_scale.ingestion.many.query import chosen_by
from scamac_scale.ingestion.raw import FILE

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.config import IngestConfig

logger = logging.getLogger(__name__)

MAX_LIST_BYTES = 2**31
TOLD = 5


def asked_cells(obs: pd.DataFrame, config: IngestConfig, name: str) -> NDArray[np.int64] | None:
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
    ndarray or None
        (n,) rows, ascending; None where neither is given.

    Raises
    ------
    InputError
        If the query or the list cannot be used, or no cell is left.
    """
    if config.where is None and config.cells is None:
        return None
    is_taken = np.ones(len(obs), dtype=bool)
    if config.where is not None:
        found = chosen_by(config.where, obs, name)
        logger.info("%s: %d of %d cells by %s", name, found.sum(), len(obs), config.where)
        is_taken &= found
        if not found.any():
            raise InputError(f"{name}: no cell is left: ingest.where={config.where!r} holds for none of {len(obs):,}.")
    if config.cells is not None:
        is_taken &= listed_cells(at_home(config.cells), obs, name)
    if not is_taken.any():
        raise InputError(
            f"{name}: no cell is left: none of {len(obs):,} is in {config.cells} and is one by ingest.where={config.where!r}."
        )
    return np.flatnonzero(is_taken)


def listed_cells(path: Path, obs: pd.DataFrame, name: str) -> NDArray[np.bool_]:
    """Mark the cells that a file lists.

    Parameters
    ----------
    path
        Text: a name of a cell in each line, or the input as ``scamac_file`` has it (its last part will do) and the name, with a tab
        between them. Empty lines count for nothing.
    obs
        N rows, with ``scamac_file``.
    name
        Of the input, for messages.

    Raises
    ------
    InputError
        If it cannot be read, names an input that is not there, no cell, or a cell by a name that several have.
    """
    try:
        text = read_plain(path, MAX_LIST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} (ingest.cells) is no text: byte {error.start} is not UTF-8.") from error
    except ValueError as error:
        raise InputError(f"{path} (ingest.cells) cannot be used: {error}.") from error
    except OSError as error:
        raise InputError(f"{path} (ingest.cells) cannot be read: {error.strerror or error}.") from error
    lines = [line.rstrip("\r") for line in text.split("\n")]
    asked = list(dict.fromkeys(line for line in lines if line.strip()))
    if not asked:
        raise InputError(f"{path} (ingest.cells) names no cell.")
    is_taken = np.zeros(len(obs), dtype=bool)
    by_file: dict[str, list[str]] = {}
    plain = []
    for line in asked:
        file, tab, cell = line.partition("\t")
        if tab:
            by_file.setdefault(file.strip(), []).append(cell.strip())
        else:
            plain.append(line.strip())
    missing = _mark(plain, obs.index, np.arange(len(obs)), is_taken, str(path))
    numbers = _file_numbers(list(by_file), obs, path)
    codes = obs[FILE].cat.codes.to_numpy()
    for file, cells in by_file.items():
        rows = np.flatnonzero(codes == numbers[file])
        missing += [f"{file}: {cell}" for cell in _mark(cells, obs.index[rows], rows, is_taken, f"{path}: {file}")]
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
            "tab and the name, or choose by scamac_file and scamac_file_row with ingest.where."
        )
    is_taken[rows[at]] = True
    return wanted[~wanted.isin(found)].tolist()


def _file_numbers(files: list[str], obs: pd.DataFrame, path: Path) -> dict[str, int]:
    """Find the number of the input that each name means, in the order of the categories."""
    known = list(map(str, obs[FILE].cat.categories))
    found = {}
    for file in files:
        same = [number for number, name in enumerate(known) if name == file]
        same = same or [
            number for number, name in enumerate(known) if os.path.basename(name.rstrip("/")) == os.path.basename(file)
        ]
        if len(same) != 1:
            what = "no input" if not same else f"{len(same)} inputs"
            raise InputError(
                f"{path} (ingest.cells) names cells of {file!r}, which is {what}; there are {', '.join(known[:TOLD])}"
                f"{', ...' if len(known) > TOLD else ''}."
            )
        found[file] = same[0]
    return found
