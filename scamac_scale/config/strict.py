"""Settings from plain data that anybody may have written: every key known, every value of the type of its field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from scamac_scale.config.choices import Hint, check_value, type_hints
from scamac_scale.errors import ConfigError, unknown_name

Config = TypeVar("Config")

MAX_WHOLE = 2**64
_WORDS: dict[Hint, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
}
_INFINITE = "train."
"""Begins the keys whose numbers may be infinite: times to wait, and lengths that another setting ends."""


def from_plain(kind: type[Config], values: object, key: str = "", *, is_partial: bool = False) -> Config:
    """Make a config dataclass of plain data.

    Parameters
    ----------
    kind
        The dataclass; its fields may be others, numbers, names, text and tuples of these.
    values
        As JSON or YAML gives them.
    key
        Under which they stand, with dots; for messages.
    is_partial
        Whether what is missing takes its default; otherwise it is refused.

    Returns
    -------
    Config
        Checked.

    Raises
    ------
    ConfigError
        Naming a key that is missing or unknown, or whose value cannot be used.
    """
    where = key or "the settings"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be keys and values, not {_short(values)}.")
    hints = type_hints(cast("type", kind))
    for name in values:
        if name not in hints:
            hint = str(unknown_name(hints, name, "")).rpartition("Did you mean ")[2] if isinstance(name, str) else ""
            near = f" Did you mean {hint}" if hint.endswith("?") else ""
            raise ConfigError(f"{where}: there is no setting {_short(name)}.{near}")
    missing = [name for name in hints if name not in values]
    if missing and not is_partial:
        raise ConfigError(f"{where}: there is no {missing[0]!r}.")
    found = {
        name: _value(hints[name], value, f"{key}.{name}" if key else name, is_partial) for name, value in values.items()
    }
    return kind(**found)


def _value(hint: Hint, value: Any, key: str, is_partial: bool) -> Any:  # Any: what JSON and YAML hold
    origin: Hint = get_origin(hint)
    parts = get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, key, is_partial=is_partial)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key}={_short(value)}; it must be a list.")
        is_names = get_origin(parts[0]) is Literal
        keys = (key if is_names else f"{key}[{index}]" for index in range(len(value)))
        return tuple(_value(parts[0], item, name, is_partial) for item, name in zip(value, keys, strict=False))
    check_value(hint, value, key)
    if origin is Literal:
        return value
    kinds = parts if origin in (Union, UnionType) else (hint,)
    if not any(_is_of(kind, value, key) for kind in kinds):
        words = [_WORDS.get(kind) or " or ".join(map(repr, get_args(kind))) for kind in kinds]
        raise ConfigError(f"{key}={_short(value)}; it must be {' or '.join(words)}.")
    return value


def _is_of(kind: Hint, value: Any, key: str) -> bool:  # Any: what JSON and YAML hold
    origin: Hint = get_origin(kind)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is int:
        return type(value) is int and abs(value) < MAX_WHOLE
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value  # not NaN
        return is_number and (abs(value) < math.inf or key.startswith(_INFINITE))
    return type(value) is kind


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return "keys and values"
    return "a list" if isinstance(value, list | tuple) else repr(value)[:80]
