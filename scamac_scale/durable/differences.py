"""What differs between two nested dicts of plain data: whoever takes up work again tells its own from another's by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence


class Difference(NamedTuple):
    """One value that is not the same.

    Attributes
    ----------
    key
        Its path, with dots.
    before, after
        Plain; None where there is none.
    """

    key: str
    before: Any
    after: Any


def plain(value: Any) -> Any:  # Any: walks any nesting
    """Put lists for tuples, so that YAML and JSON hold plain data."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[Difference]:
    """Find what differs: in the order of `after`, then what only `before` has.

    Parameters
    ----------
    before, after
        Plain data, nested in dicts. Tuples are as good as lists, and what is missing is as good as None, or as a dict of
        nothing.
    prefix
        Of all keys.

    Yields
    ------
    Difference
        Of each value that is no dict.
    """
    for key in [*after, *(key for key in before if key not in after)]:
        then, now = plain(before.get(key)), plain(after.get(key))
        if {type(then), type(now)} <= {dict, type(None)}:
            yield from differences(then or {}, now or {}, f"{prefix}{key}.")
        elif then != now:
            yield Difference(f"{prefix}{key}", then, now)


def told(found: Sequence[Difference], *, digests: Container[str] = (), most: int | None = None) -> str:
    """Put differences into words, for a message.

    Parameters
    ----------
    found
        At least one.
    digests
        Keys whose values tell nobody anything.
    most
        How many are named; None names all.
    """
    named = [
        f"another {key}" if key in digests else f"{key}={after!r} (it was {before!r})"
        for key, before, after in found[:most]
    ]
    return ", ".join(named) + (" and others" if len(found) > len(named) else "")
