"""Tables of a file: the annotation of cells, and the names of genes; column by column, so that a message names the one that is wrong."""

from __future__ import annotations

import logging
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.arrays import (
    check_array,
    check_encoding,
    check_names,
    encoding,
    is_array,
    part_of,
    unknown_encoding,
)
from scamac_scale.ingestion.chunks import Writer, refuse_column_gaps, refuse_gaps
from scamac_scale.ingestion.raw import blamed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

logger = logging.getLogger(__name__)

Element = Any
"""An h5py or zarr group or array."""

NO_COLUMNS = ("awkward-array", "csr_matrix", "csc_matrix", "dataframe")
"""Encodings of what has several values for a row, or none."""
MOST_PARTS = 16
"""Of one column: categories and codes, or values and a mask; categories may themselves have a mask. Links could make any number."""


def read_frame(element: Element, where: str, uns: Element | None = None) -> pd.DataFrame:
    """Read a table.

    Parameters
    ----------
    element
        Group of a table; or an array of records, as anndata wrote before 0.7.
    where
        The file, and its place there, for messages.
    uns
        Where anndata before 0.7 kept the names of categories.

    Returns
    -------
    DataFrame
        Names as its index, as text.

    Raises
    ------
    InputError
        If a part is missing, damaged, of another length, or of an encoding that is not known.
    """
    import pandas as pd

    if is_array(element):
        return _read_records(element, where, uns)
    _require_table(element, where)
    key, columns, writer = _key_of_names(element, where), _order(element, where), Writer()
    names = pd.Index(np.asarray(_read_names(element, key, where), dtype=object))
    meant: list[str] = []
    left_out: list[str] = []
    values = {}
    for column in columns:
        place = f"{where}/{column}"
        if column not in element:
            raise InputError(
                f"{where} names a column {column!r} that is not there; the file is damaged, write it again."
            )
        if why := _no_column(element[column], len(names)):
            left_out.append(f"{column} ({why})")
            continue
        with blamed(place, "the column"):
            old = _old_categories(element, column, where)
            if _has_gaps(element[column], place, len(names), writer, old):
                meant.append(column)
            values[column] = _read(element[column], place) if old is None else _read_old(element[column], old)
        if len(values[column]) != len(names):
            raise InputError(
                f"{place} has {len(values[column]):,} values for {len(names):,} names; the file is damaged, write it again."
            )
    if left_out:
        logger.warning(
            "%s: %d columns are left out, they hold no value for each row: %s",
            where,
            len(left_out),
            ", ".join(left_out[:5]),
        )
    if meant:
        logger.warning(
            "%s: files of %d columns are not there (%s); zarr leaves out what holds nothing but zeros, and these fit that: "
            "if they should hold something, copy the folder again",
            where,
            len(meant),
            ", ".join(meant[:5]) + (", ..." if len(meant) > 5 else ""),
        )
    frame = pd.DataFrame(values, index=names, columns=list(values) or None)
    return _named(frame.rename_axis(None if key == "_index" else key))


def read_columns(element: Element, where: str, wanted: Sequence[str], uns: Element | None = None) -> pd.DataFrame:
    """Read some columns of a table, and not the names of its rows, which may be most of it.

    Parameters
    ----------
    element, where, uns
        As of `read_frame`.
    wanted
        The columns.

    Returns
    -------
    DataFrame
        Rows are numbered from 0 on.

    Raises
    ------
    InputError
        As of `read_frame`, and where there is no such column; the message lists those that are there.
    """
    import pandas as pd

    is_old = is_array(element)
    if not is_old:
        _require_table(element, where)
    frame = _read_records(element, where, uns) if is_old else None
    known = _order(element, where) if frame is None else list(map(str, frame.columns))
    for column in wanted:
        if column not in known or (frame is None and column not in element):
            raise InputError(f"{where} has no column {column!r}; it has {', '.join(known) or 'none'}.")
    if frame is not None:
        return frame[list(wanted)].reset_index(drop=True)
    n_rows, values = count_names(element, where), {}
    for column in wanted:
        place = f"{where}/{column}"
        if n_rows is not None and (why := _no_column(element[column], n_rows)):
            raise InputError(f"{place} holds no value for each row ({why}); name another column.")
        with blamed(place, "the column"):
            old = _old_categories(element, column, where)
            if n_rows is not None:
                _has_gaps(element[column], place, n_rows, Writer(), old)
            values[column] = _read(element[column], place) if old is None else _read_old(element[column], old)
        if n_rows is not None and len(values[column]) != n_rows:
            raise InputError(
                f"{place} has {len(values[column]):,} values for {n_rows:,} names; the file is damaged, write it again."
            )
    return pd.DataFrame(values, columns=list(wanted))


def read_names(element: Element, where: str) -> pd.Index[str]:
    """Read the names of a table alone: other columns need not be readable. Parameters and errors as of `read_frame`."""
    import pandas as pd

    if is_array(element):
        return _read_records(element, where, None).index
    _require_table(element, where)
    names = _read_names(element, _key_of_names(element, where), where)
    index: pd.Index[str] = _text(pd.Index(np.asarray(names, dtype=object)))
    return index


def count_names(element: Element, where: str) -> int | None:
    """Length of a table, before any of it is read; None where only reading tells."""
    if is_array(element):
        return int(element.shape[0]) if len(element.shape) == 1 else None
    _require_table(element, where)
    key = _key_of_names(element, where)
    if not is_array(element[key]):
        return None
    check_names(element[key], f"{where}/{key}")
    return int(element[key].shape[0])


def _no_column(element: Element, n_rows: int) -> str | None:
    """Name what some programs put among the columns and no table can hold; None for a column."""
    if is_array(element):
        shape: tuple[int, ...] = element.shape or ()
        if len(shape) == 2 and shape[0] == n_rows:
            return "2 dimensions"
        return "records" if element.dtype.names and shape == (n_rows,) else None
    kind = encoding(element)[0]
    return kind if kind in NO_COLUMNS else None


def _require_table(element: Element, where: str) -> None:
    kind, _ = encoding(element)
    if not hasattr(element, "keys"):
        raise InputError(f"{where} is a named type, expected a table; the file is damaged, write it again.")
    if kind in (None, "", "dict"):
        raise InputError(f"{where} is {kind or 'a group'}, expected a table; write the file again with anndata >= 0.8.")
    check_encoding(element, where, ("dataframe",))


def _key_of_names(element: Element, where: str) -> str:
    key = _decoded(dict(element.attrs).get("_index"))
    if not isinstance(key, str) or key not in element:
        raise InputError(f"{where} does not say which of its parts are the names; the file is damaged, write it again.")
    return key


def _order(element: Element, where: str) -> list[str]:
    order = dict(element.attrs).get("column-order", ())
    columns = (
        [order] if isinstance(order, str) else [str(_decoded(name)) for name in np.asarray(order).ravel().tolist()]
    )
    repeated = {name for name in columns if columns.count(name) > 1} if len(columns) < 10_000 else set()
    if repeated:
        raise InputError(f"{where} names the column {min(repeated)!r} twice; the file is damaged, write it again.")
    return columns


def _read_names(element: Element, key: str, where: str) -> Any:  # Any: what anndata returns
    place = f"{where}/{key}"
    if not is_array(element[key]) and encoding(element[key])[0] in (None, "", "dict"):
        raise InputError(f"{place} is a group where an array is expected; the file is damaged, write it again.")
    for array, name in _arrays(element[key], place):
        check_array(array, name)
        check_names(array, name)
        if not name.endswith("/mask"):
            refuse_gaps(array, name)
    with blamed(place, "the names"):
        return _read(element[key], place)


def _arrays(element: Element, place: str, depth: int = 2) -> Iterator[tuple[Element, str]]:
    if is_array(element):
        yield element, place
    elif hasattr(element, "keys"):
        if not depth or len(element) > MOST_PARTS:
            what = "a group where an array is expected" if not depth else f"a group of {len(element):,} parts"
            raise InputError(f"{place} is {what}; the file is damaged, write it again.")
        for key in element:
            yield from _arrays(element[key], f"{place}/{key}", depth - 1)
    else:
        raise InputError(f"{place} is a named type, expected an array; the file is damaged, write it again.")


def _has_gaps(element: Element, place: str, n_rows: int, writer: Writer, old: Element | None) -> bool:
    """Check the arrays of one column before it is read, and tell whether chunks are missing that seem to be meant so."""
    found = False
    for array, name in _arrays(element, place):
        check_array(array, name)
        is_name = name.endswith("/categories")
        if not is_name and array.shape != (n_rows,) and array.shape != ():
            raise InputError(
                f"{name} has shape {tuple(array.shape)} for {n_rows:,} names; the file is damaged, write it again."
            )
        if is_name:
            check_names(array, name)
            found |= refuse_column_gaps(array, name, writer) if array.shape == (1,) else _whole(array, name)
            continue
        categories = element["categories"] if name.endswith("/codes") and "categories" in element else old
        known = categories if is_array(categories) else None
        found |= refuse_column_gaps(array, name, writer, None if known is None else math.prod(known.shape))
    return found


def _old_categories(element: Element, column: str, where: str) -> Element | None:
    """Categories of a column of numbers, as anndata 0.7 wrote them: in a group of their own; None where there are none."""
    if encoding(element)[1] != "0.1.0" or "categories" not in dict(element[column].attrs):
        return None
    found = part_of(element, f"__categories/{column}", where)
    place = f"{where}/__categories/{column}"
    check_names(found, place)
    refuse_gaps(found, place)
    return found


def _read_old(codes: Element, categories: Element) -> pd.Categorical:
    import pandas as pd

    named = pd.Index([_decoded(value) for value in np.atleast_1d(categories[...]).tolist()])
    is_ordered = bool(np.all(dict(categories.attrs).get("ordered", False)))
    return pd.Categorical.from_codes(np.asarray(codes[...]), categories=named, ordered=is_ordered)


def _whole(array: Element, place: str) -> bool:
    refuse_gaps(array, place)
    return False


def _read(element: Element, place: str) -> Any:  # Any: what anndata returns
    from anndata.io import read_elem

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a file is of an older version
            values = read_elem(element)
            return np.atleast_1d(values) if np.isscalar(values) else values  # of one cell, as anndata 0.7 read it
    except Exception as error:
        if type(error).__name__ == "IORegistryError" or type(error.__cause__).__name__ == "IORegistryError":
            raise unknown_encoding(element, place) from error
        raise


def _named(frame: Any) -> pd.DataFrame:  # Any: what anndata returns
    named: pd.DataFrame = frame
    named.index = _text(named.index)
    return named


def _text(names: pd.Index[Any]) -> pd.Index[str]:
    """Return names as text; such as were written as bytes are read as such."""
    text: pd.Index[str] = (names.map(_decoded) if names.inferred_type in ("bytes", "mixed") else names).astype(str)
    return text


def _decoded(value: Any) -> Any:  # Any: of a record
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _read_records(element: Element, where: str, uns: Element | None) -> pd.DataFrame:
    """Read a table as anndata before 0.7 wrote it: records, the first field the names; categories are numbers, named in uns."""
    import pandas as pd

    if element.dtype.names is None or len(element.shape) != 1:
        raise InputError(
            f"{where} is an array of {element.dtype}, expected a table; write the file again with anndata >= 0.8."
        )
    check_array(element, where)
    refuse_gaps(element, where)
    with blamed(where, "the table"):
        records = element[...]
        columns = {name: [_decoded(value) for value in records[name].tolist()] for name in records.dtype.names}
    key, *others = columns
    frame = pd.DataFrame({name: columns[name] for name in others}, index=pd.Index(columns[key], dtype=object))
    for name in others:
        categories = None if uns is None else uns.get(f"{name}_categories")
        if categories is not None and is_array(categories) and frame[name].dtype.kind in "iu":
            named = [_decoded(value) for value in np.atleast_1d(categories[...]).tolist()]
            frame[name] = pd.Categorical.from_codes(frame[name].to_numpy(), categories=pd.Index(named))
    logger.info("%s was written by anndata before 0.7; it is read, and better written again", where)
    return _named(frame)
