"""Tables of the cells of several inputs as one: a column of the same name is one column, its categories are merged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.genes import duplicates
from scamac_scale.cells.tech_batches import split_key
from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

logger = logging.getLogger(__name__)

TOLD = 10
"""Columns that are named in a message, at most."""


def with_constants(obs: pd.DataFrame, columns: Mapping[str, Any], name: str) -> pd.DataFrame:
    """Add columns of a manifest, each with one value for all cells.

    Parameters
    ----------
    obs
        N rows.
    columns
        Values: text, a number, a boolean, or None.
    name
        Of the input, for messages.
    """
    import pandas as pd

    replaced = [column for column in columns if column in obs]
    if replaced:
        logger.warning(
            "%s: the columns %s of obs are replaced by those of the manifest", name, ", ".join(replaced[:TOLD])
        )
    found = obs.copy()
    for column, value in columns.items():
        if value is None:
            found[column] = pd.Categorical.from_codes(np.full(len(obs), -1, np.int8), pd.Index([], dtype=object))
        elif isinstance(value, str):
            found[column] = pd.Categorical.from_codes(np.zeros(len(obs), np.int8), pd.Index([value], dtype=object))
        else:
            found[column] = np.full(len(obs), value)
    return found


def kept_columns(
    obs: pd.DataFrame, columns: str | None, batch_key: str | None, name: str, always: Sequence[str] = ()
) -> pd.DataFrame:
    """Take the columns that were asked for.

    Parameters
    ----------
    obs
        N rows.
    columns
        ``ingest.columns``; None takes all.
    batch_key
        ``ingest.batch_key``, whose columns are kept, too.
    name
        Of the input, for messages.
    always
        Columns that are kept if they are there.

    Raises
    ------
    InputError
        If there is no such column.
    """
    if columns is None:
        return obs
    asked = split_key(columns)
    missing = [column for column in asked if column not in obs]
    if missing:
        known = ", ".join(map(str, obs.columns)) or "none"
        raise InputError(f"{name}: obs has no column {missing[0]!r} (ingest.columns); it has {known}.")
    wanted = {*asked, *split_key(batch_key), *always}
    return obs.loc[:, [column in wanted for column in obs.columns]]


def join_frames(frames: Sequence[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """Put tables of cells one below the other.

    Parameters
    ----------
    frames
        One for each input.
    names
        Of the inputs, for messages.

    Returns
    -------
    DataFrame
        Rows of all, with the columns of any in the order in which they come first; the names of the cells stay, also where some are
        alike. Categories are merged in the order in which they come first. A column that an input lacks has missing values there;
        whole numbers and booleans then become such that may be missing. Columns of types that do not fit, and numbers that no type
        holds exactly, become text, which is logged.

    Raises
    ------
    InputError
        If an input has two columns of one name.
    """
    import pandas as pd

    for frame, name in zip(frames, names, strict=True):
        if repeated := duplicates([str(column) for column in frame.columns]):
            raise InputError(f"{name}: obs repeats the columns {', '.join(repeated[:TOLD])}; rename or remove them.")
    columns = list(dict.fromkeys(column for frame in frames for column in frame.columns))
    lengths = [len(frame) for frame in frames]
    index = pd.Index(np.concatenate([frame.index.to_numpy(dtype=object) for frame in frames]), dtype=object)
    index_names = {frame.index.name for frame in frames}
    found, as_text, wanting = {}, [], []
    for column in columns:
        parts = [frame.get(column) for frame in frames]
        found[column], is_text = _joined(parts, lengths)
        as_text += [str(column)] if is_text else []
        if n_without := sum(part is None for part in parts):
            wanting.append(f"{column} ({n_without})")
    if as_text:
        logger.warning(
            "obs: the columns %s hold other types in other inputs, or numbers that are too large together, and become text",
            ", ".join(as_text[:TOLD]),
        )
    if wanting:
        more = f" and {len(wanting) - TOLD} more" if len(wanting) > TOLD else ""
        logger.info("obs: missing in some of %d inputs: %s%s", len(frames), ", ".join(wanting[:TOLD]), more)
    return pd.DataFrame(found, index=index.rename(index_names.pop() if len(index_names) == 1 else None), copy=False)


def warn_of_repeated(index: pd.Index[str], what: str) -> None:
    """Tell how many cells share their name with others; they stay apart."""
    n_repeated = len(index) - index.nunique()
    if n_repeated:
        logger.warning(
            "%s: %s of %s cells have a name that another one has, too; they stay apart, and scamac_file and scamac_file_row of obs tell "
            "them",
            what,
            f"{int(index.duplicated(keep=False).sum()):,}",
            f"{len(index):,}",
        )


def _kind(part: pd.Series[Any]) -> str:
    """Tell what a column holds: category or text (``s``), boolean (``b``), whole numbers (``i``), numbers (``f``), nothing, or else."""
    import pandas as pd

    dtype = part.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        held = dtype.categories
        if not len(held):
            return "nothing"
        return "s" if pd.api.types.infer_dtype(held) == "string" else f"category of {held.dtype}"
    if pd.api.types.is_bool_dtype(dtype):
        return "b"
    if pd.api.types.is_integer_dtype(dtype):
        return "i"
    if pd.api.types.is_float_dtype(dtype):
        return "nothing" if bool(part.isna().all()) else "f"
    if pd.api.types.is_object_dtype(dtype) or pd.api.types.is_string_dtype(dtype):
        inferred = pd.api.types.infer_dtype(part, skipna=True)
        return {"string": "s", "empty": "nothing", "boolean": "b", "integer": "i", "floating": "f"}.get(
            inferred, inferred
        )
    return str(dtype)


def _joined(parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> tuple[Any, bool]:
    """Join one column; parts that are None are missing. Tells whether it became text for types that do not fit."""
    import pandas as pd

    kinds = {kind for part in parts if part is not None if (kind := _kind(part)) != "nothing"}
    is_whole = all(part is not None and _kind(part) != "nothing" for part in parts)
    if kinds <= {"i", "f"} and kinds and _are_exact(parts, is_whole=kinds == {"i"}):
        return _numbers(parts, lengths, is_whole=is_whole and kinds == {"i"}, are_whole=kinds == {"i"}), False
    if kinds == {"b"}:
        pieces = [_pieces(part, length, "boolean") for part, length in zip(parts, lengths, strict=True)]
        joined = pd.concat(pieces, ignore_index=True)
        return (joined.array if joined.isna().any() else joined.to_numpy(dtype=bool)), False
    if not kinds:
        return np.full(sum(lengths), np.nan), False
    if len(kinds) == 1 and not kinds & {"s", "i"} and is_whole and not next(iter(kinds)).startswith("category"):
        return pd.concat([part for part in parts if part is not None], ignore_index=True).array, False  # dates
    if kinds == {"s"}:
        is_plain = all(
            part is not None and not isinstance(part.dtype, pd.CategoricalDtype) and not part.isna().any()
            for part in parts
        )
        if is_plain:  # as it would be of one file
            return np.concatenate([part.to_numpy(dtype=object) for part in parts if part is not None]), False
        return _categories(parts, lengths), False
    if len(kinds) == 1 and next(iter(kinds)).startswith("category"):
        return _categories(parts, lengths), False
    return _categories([None if part is None else _as_text(part) for part in parts], lengths), True


def _pieces(part: pd.Series[Any] | None, length: int, dtype: Any) -> pd.Series[Any]:
    import pandas as pd

    if part is None or _kind(part) == "nothing":
        return pd.Series([pd.NA] * length, dtype=dtype)
    whole: pd.Series[Any] = part.astype(dtype)
    return whole


def _range(parts: Sequence[pd.Series[Any] | None]) -> tuple[int, int]:
    """Smallest and largest of the whole numbers of some columns; zeros where there are none."""
    known = [part.dropna() for part in parts if part is not None and _kind(part) == "i"]
    ends = [(int(part.min()), int(part.max())) for part in known if len(part)]
    return min((low for low, _ in ends), default=0), max((high for _, high in ends), default=0)


def _are_exact(parts: Sequence[pd.Series[Any] | None], *, is_whole: bool) -> bool:
    """Whether one type of numbers holds all without loss: of 64 bits, with a sign or without, or float64."""
    low, high = _range(parts)
    if is_whole:
        return high < (2**64 if low >= 0 else 2**63) and low >= -(2**63)
    return max(-low, high) <= 2**53


def _numbers(parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int], *, is_whole: bool, are_whole: bool) -> Any:
    """Join numbers: whole ones stay such, without loss where some are missing."""
    import pandas as pd

    known = [part for part in parts if part is not None]
    is_plain = is_whole and all(isinstance(part.dtype, np.dtype) and part.dtype.kind in "iu" for part in known)
    if is_plain and np.result_type(*map(np.dtype, {str(part.dtype) for part in known})).kind in "iu":
        return np.concatenate([part.to_numpy() for part in known])
    if are_whole:
        dtype = "Int64" if _range(parts)[1] < 2**63 else "UInt64"
        joined = pd.concat(
            [_pieces(part, length, dtype) for part, length in zip(parts, lengths, strict=True)], ignore_index=True
        ).array
        return joined.to_numpy(dtype=dtype.lower()) if is_plain else joined
    pieces = [
        np.full(length, np.nan, np.float32) if part is None or _kind(part) == "nothing" else _floats(part)
        for part, length in zip(parts, lengths, strict=True)
    ]
    return np.concatenate(pieces)


def _floats(part: pd.Series[Any]) -> Any:
    if isinstance(part.dtype, np.dtype) and part.dtype.kind == "f":
        return part.to_numpy()
    return part.to_numpy(dtype=np.float64, na_value=np.nan)


def _categories(parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> pd.Categorical:
    """Merge categories, in the order in which they come first; ordered only where all have the same ones in the same order."""
    import pandas as pd

    found = [None if part is None or _kind(part) == "nothing" else pd.Categorical(part) for part in parts]
    known = [values for values in found if values is not None]
    ordered = all(values.ordered and values.categories.equals(known[0].categories) for values in known)
    names = pd.Index(list(dict.fromkeys(name for values in known for name in values.categories)))
    names = names.astype(object) if names.dtype.kind not in "biuf" else names
    codes = []
    for values, length in zip(found, lengths, strict=True):
        if values is None:
            codes.append(np.full(length, -1, np.int32))
            continue
        places = np.append(names.get_indexer(values.categories), -1).astype(np.int32)
        codes.append(places[values.codes])
    return pd.Categorical.from_codes(np.concatenate(codes), names, ordered=ordered)


def _as_text(part: pd.Series[Any]) -> pd.Series[Any]:
    """Write values as text, whole numbers without a fraction: so 1 of one input is the 1.0 and the "1" of others."""
    import pandas as pd

    values = part.astype(object)
    is_there = part.notna().to_numpy()
    text = np.full(len(values), None, dtype=object)
    text[is_there] = [_written(value) for value in values.to_numpy(dtype=object)[is_there]]
    return pd.Series(text, dtype=object)


def _written(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)
