"""Text from files as it may be shown: nothing in it commands the terminal or passes for a line of ours."""

from __future__ import annotations

import logging
from numbers import Number

MAX_LETTERS = 20_000
"""A message is cut beyond this: a name in a file can be as long as the file."""


def printable(text: object, keep: str = "") -> str:
    r"""Escape what is not for the eye, as Python's own ``repr`` would write it.

    Parameters
    ----------
    text
        Anything; its ``str`` is taken.
    keep
        Characters that stay as they are, such as the line feeds of a layout.

    Returns
    -------
    str
        Letters of all scripts, marks and the space stay. Control characters (C0, DEL, C1), line feeds, line and paragraph separators,
        changes of direction, characters without width, halves of a pair and those that Unicode has not given out become ``\x1b``,
        ``\n``, ``\u202e`` and so on.
    """
    text = _str(text)
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def _str(value: object) -> str:
    """Turn into text; an object that fails at that must not end the work that only mentions it."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001  any, of other packages
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def one_line(message: object) -> str:
    """Write a message as one line of bounded length."""
    text = _str(message)
    if len(text) > MAX_LETTERS:
        text = f"{text[:MAX_LETTERS]} ... ({len(text) - MAX_LETTERS:,} more letters)"
    return printable(text)


class _Shown:
    """An argument of a log line, escaped when it is put in."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return one_line(self._value)

    def __repr__(self) -> str:
        return one_line(repr(self._value))


class PrintableFormatter(logging.Formatter):
    """Writes a log record with its arguments escaped; line feeds stay only where the message itself has them, and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as text that may be shown."""
        args = record.args
        if isinstance(args, tuple) and args:
            shown = logging.makeLogRecord(record.__dict__)
            shown.args = tuple(
                value if isinstance(value, Number) or hasattr(value, "__float__") else _Shown(value) for value in args
            )
            return printable(super().format(shown), keep="\n")
        return one_line(record.getMessage()) if not record.exc_info else printable(super().format(record), keep="\n")
