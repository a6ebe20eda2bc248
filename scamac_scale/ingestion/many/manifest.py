"""A manifest: a table of inputs, a row for each, whose other columns become columns of obs."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from scamac_scale.durable.plain import parse_yaml_entries, read_plain
from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TABLES = {".csv": ",", ".tsv": "\t"}
"""Suffixes of tables, and what lies between their columns."""
LISTS = (".yaml", ".yml")
PATH, MATRIX = "path", "matrix"
"""Columns that are not of the cells: where the input lies, and where its values lie in it."""
MAX_TABLE_BYTES = 2**24
MISSING = ("", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "NULL", "null", "None", "~")
"""Texts of values that are missing."""
MAX_LETTERS = 30
"""Numbers are written in fewer."""
_BOOLEANS = {"True": True, "False": False, "true": True, "false": False, "TRUE": True, "FALSE": False}


class ManifestRow(NamedTuple):
    """One input of a manifest: as written there."""

    path: str
    matrix: str | None
    columns: dict[str, Any]  # Any: text, a number, a boolean, or None


def is_manifest(path: Path) -> bool:
    """Whether a path is that of a manifest, by its suffix."""
    return path.suffix.lower() in (*TABLES, *LISTS)


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read a manifest.

    Parameters
    ----------
    path
        A table with a header (``.csv``, ``.tsv``), or a list of named values (``.yaml``, ``.yml``). The column ``path`` names the
        inputs, ``matrix`` (if there is one) says where the values of each lie; all others are of obs.

    Returns
    -------
    list of ManifestRow
        A column whose values are all whole numbers holds such, likewise numbers and booleans; else text. Text, too, is what a number would
        not be written as: 007, 3.10, more digits than a number keeps. A missing value (empty, NA, NaN, null, None, ...) is None.

    Raises
    ------
    InputError
        If it cannot be read, has no column ``path`` or no rows, or a row that is not like the header.
    """
    try:
        if path.suffix.lower() in TABLES:
            rows = _table(read_plain(path, MAX_TABLE_BYTES), TABLES[path.suffix.lower()])
        else:
            rows = _entries(read_plain(path, MAX_TABLE_BYTES))
    except FileNotFoundError as error:
        raise InputError(f"there is no manifest {path}.") from error
    except OSError as error:
        raise InputError(f"the manifest {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(
            f"{path} cannot be used as a manifest: {error}. A manifest names inputs, one a row, in a column {PATH!r}; other columns, "
            "such as donor, become columns of obs."
        ) from error
    names = list(dict.fromkeys(name for row in rows for name in row if name not in (PATH, MATRIX)))
    columns = {name: _typed([row.get(name) for row in rows]) for name in names}
    return [
        ManifestRow(str(row[PATH]), _text(row.get(MATRIX)) or None, {name: columns[name][at] for name in names})
        for at, row in enumerate(rows)
    ]


def _table(content: bytes, delimiter: str) -> list[dict[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    if "\0" in text:
        raise ValueError("it holds zero bytes")
    try:
        table = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if any(row)]
    except csv.Error as error:
        raise ValueError(f"it is no table ({error})") from error
    if not table:
        raise ValueError("it is empty")
    header = [name.strip() for name in table[0]]
    if PATH not in header:
        other = next((sign for sign in (";", "\t", ",") if sign != delimiter and sign in table[0][0]), None)
        hint = f"; its columns are separated by {other!r}, expected {delimiter!r}" if other else ""
        raise ValueError(f"its first line has no column {PATH!r}{hint}")
    if "" in header or len(set(header)) < len(header):
        raise ValueError("its columns do not all have names of their own")
    rows = []
    for number, row in enumerate(table[1:], start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} values, and the header {len(header)} names")
        rows.append({name: value.strip() for name, value in zip(header, row, strict=True)})
    return _checked(rows)


def _entries(content: bytes) -> list[dict[str, Any]]:
    rows = []
    for number, entry in enumerate(parse_yaml_entries(content), start=1):
        named = {PATH: entry} if isinstance(entry, str) else entry
        if not isinstance(named, dict):
            raise ValueError(f"entry {number} is neither a path nor named values")
        nested = [str(name) for name, value in named.items() if isinstance(value, (dict, list))]
        if nested:
            raise ValueError(f"{nested[0]!r} of entry {number} is no single value")
        row = {str(name).strip(): value for name, value in named.items()}
        if len(row) < len(named):
            raise ValueError(f"two names of entry {number} are alike")
        rows.append(row)
    return _checked(rows)


def _checked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not rows:
        raise ValueError("it names no input")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(PATH), str) or not row[PATH].strip():
            raise ValueError(f"row {number} has no {PATH}")
        if row.get(MATRIX) is not None and not isinstance(row[MATRIX], str):
            raise ValueError(f"the {MATRIX} of row {number} is no text")
        if any(not name for name in row):
            raise ValueError(f"row {number} has a value without a name")
    return rows


def _text(value: Any) -> str:
    return "" if value is None or str(value) in MISSING else str(value)


def _typed(values: list[Any]) -> list[Any]:
    """Make whole numbers, numbers or booleans of texts, where all of a column are such and none is changed by it; else text of all."""
    texts = [_text(value) for value in values]
    known = [text for text in texts if text]
    rules: list[Callable[[str], Any]] = [_BOOLEANS.__getitem__, int, float]
    rule = next((rule for rule in rules if known and all(_is_exact(rule, text) for text in known)), str)
    return [rule(text) if text else None for text in texts]


def _is_exact(rule: Callable[[str], Any], text: str) -> bool:
    """Whether the value of a text is written just so: 3.10 is no number, nor is 007, or an identifier of twenty digits."""
    try:
        value = rule(text)
    except (LookupError, ValueError):
        return False
    if isinstance(value, bool):
        return True
    if len(text) > MAX_LETTERS or not math.isfinite(value):
        return False
    if isinstance(value, int):
        return str(value) == text and abs(value) < 2**63
    return text in (repr(value), repr(value).removesuffix(".0")) and abs(value) < 2**53 and text != "-0"
