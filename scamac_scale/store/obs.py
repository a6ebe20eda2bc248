"""Columns that describe cells, in types that AnnData can write and that read back as they were."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd

from scamac_scale.errors import InputError

_log = logging.getLogger(__name__)


def storable_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Turn columns into types that AnnData can write.

    Parameters
    ----------
    frame
        One row per cell (or gene), names as index.

    Returns
    -------
    DataFrame
        Same rows. Numbers, booleans, nullable integers and booleans, strings and categories stay. Strings with missing
        values become categories; dates, intervals and mixed objects become their text, bytes the text that they hold in
        UTF-8; objects that are all numbers or all booleans become such. Slashes in column names become underscores, which
        is logged.

    Raises
    ------
    InputError
        If two columns have the same name.
    """
    names = [_column_name(name) for name in frame.columns]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"Columns of the input repeat {', '.join(repeated[:10])}; rename or remove them.")
    index = pd.Index(frame.index.astype(str), dtype=object).rename(_index_name(frame.index.name, names))
    columns = {name: _storable(frame.iloc[:, i]) for i, name in enumerate(names)}
    return pd.DataFrame(columns, index=index)


def _as_text(value: Any) -> str:  # Any: whatever a table holds
    """Return the text of a value; that of bytes is read as UTF-8, and those that are none stay apart from one another."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value if type(value) is str else str(value)


def _column_name(name: Any) -> str:  # Any: pandas allows every hashable
    text = str(name).replace("/", "_")
    text = "index" if text == "_index" else text or "unnamed"  # AnnData keeps _index for itself
    if text != name:
        _log.warning("column %r of the input is stored as %r", name, text)
    return text


def _index_name(name: Any, columns: list[str]) -> str | None:  # Any: pandas allows every hashable
    if not isinstance(name, str) or name in ("", "_index") or "/" in name or name in columns:
        return None
    return name


def _storable(column: pd.Series[Any]) -> Any:  # Any: one of several arrays
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _categorical(column)
    if isinstance(dtype, np.dtype) and dtype.kind in "biufc":
        return column.to_numpy()
    if isinstance(dtype, pd.SparseDtype):
        return _storable(pd.Series(np.asarray(column)))
    if isinstance(dtype, pd.BooleanDtype) or pd.api.types.is_integer_dtype(dtype):
        return column.array
    if pd.api.types.is_float_dtype(dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return _object(column) if dtype.kind == "O" and isinstance(dtype, np.dtype) else _text(column)


def _object(column: pd.Series[Any]) -> Any:  # Any: one of several arrays
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    has_missing = bool(column.isna().any())
    if inferred == "empty":
        return np.full(column.size, np.nan)
    if inferred == "boolean":
        return column.astype("boolean").array if has_missing else column.to_numpy(dtype=bool)
    if inferred == "integer" and has_missing:
        return column.astype("Int64").array
    if inferred in ("integer", "floating", "mixed-integer-float"):
        return np.asarray(pd.to_numeric(column))
    return _text(column)


def _text(column: pd.Series[Any]) -> Any:  # Any: one of two arrays
    missing = column.isna().to_numpy()
    text = column.astype(object).to_numpy(copy=True)
    text[~missing] = [_as_text(value) for value in text[~missing]]
    if not missing.any():
        return text
    text[missing] = None
    return pd.Categorical(text)


def _categorical(column: pd.Series[Any]) -> pd.Categorical:
    values = pd.Categorical(column)
    kept = values.categories
    if isinstance(kept.dtype, np.dtype) and kept.dtype.kind in "biuf":
        return values
    text = pd.Index([_as_text(value) for value in kept], dtype=object)
    if not text.is_unique:  # 1 and "1"
        names = np.array([*text, None], dtype=object)
        return pd.Categorical(names[values.codes])
    return pd.Categorical.from_codes(values.codes, text, ordered=bool(values.ordered))
