"""The exceptions of the package, and the exit code that each one means.

A message says what came, what was expected, where, and what to do. Every class derives from `ScamacError` and from the
built-in that fits, so that callers may catch either.
"""

from __future__ import annotations

import difflib
import errno
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Entry = TypeVar("Entry")


class ScamacError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes
    ----------
    exit_code
        What the command line returns: 2 for bad input, config or usage unless a subclass says otherwise.
    """

    exit_code: int = 2


class ConfigError(ScamacError, ValueError):
    """A setting that cannot be used: unknown, out of range, or at odds with another."""


class InputError(ScamacError, ValueError):
    """Input data that cannot be used: missing matrix, negative values, duplicate genes, too few cells."""


class ShapeError(ScamacError, ValueError):
    """A tensor whose shape does not fit the operation."""


class StoreError(ScamacError, ValueError):
    """A training store that is missing, incomplete, damaged or of another version."""


class PlanError(ScamacError, ValueError):
    """A reading plan that cannot be made, or a row that is not in the source."""


class MissingExtraError(ScamacError, ImportError):
    """An optional dependency that is not installed; the message names the extra that brings it."""


class OutputError(ScamacError, OSError):
    """An output that cannot be written: no space, no permission, or already there."""

    exit_code = 4


class ResumeError(ConfigError):
    """Work that was begun and cannot go on as asked: by other settings, on another input. What was done is kept."""


class LockedError(OutputError):
    """An output that another job is writing: try again later."""

    exit_code = 75


class NumericalError(ScamacError, ArithmeticError):
    """NaN or infinity where a finite number must be."""

    exit_code = 5


class MemoryLimitError(ScamacError, MemoryError):
    """Not enough memory for the settings, or too few threads or open files.

    Attributes
    ----------
    found
        What ran out, without advice.
    command
        Whose settings the advice is about.
    """

    found = ""
    command = ""


class StoppedError(ScamacError):
    """Stopped by a signal before the end; what is there is enough to go on."""

    exit_code = 75


class LostRankError(ScamacError, ConnectionError):
    """Another process of the job does not answer, or has failed; the exit code is then that of its failure."""

    exit_code = 75


class ClusterError(ScamacError, RuntimeError):
    """A dask cluster that cannot do the work: workers of another version, that see other files, or die of it."""


_BY_NAME: dict[str, type[ScamacError]] = {
    each.__name__: each
    for each in (
        *(ScamacError, ConfigError, InputError, ShapeError, StoreError, PlanError, MissingExtraError, OutputError),
        *(ResumeError, LockedError, NumericalError, MemoryLimitError, StoppedError, LostRankError, ClusterError),
    )
}
_EXIT_CODES = range(1, 256)


def error_to_plain(error: ScamacError) -> dict[str, Any]:
    """Give what `error_from_plain` makes the same error of, in another process: its kind by name, message, exit code, errno."""
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _BY_NAME)
    number = error.errno if isinstance(error, OSError) else None
    return {"kind": name, "message": str(error), "exit_code": error.exit_code, "errno": number}


def error_from_plain(plain: dict[str, Any]) -> ScamacError:
    """Make the error that `error_to_plain` gave; one of this module, whatever stands there."""
    error = _BY_NAME.get(str(plain.get("kind")), ScamacError)(str(plain.get("message")))
    code, number = plain.get("exit_code"), plain.get("errno")
    if isinstance(code, int) and code in _EXIT_CODES:
        error.exit_code = code
    if isinstance(error, OSError) and isinstance(number, int):
        error.errno = number
    return error


def choose(options: Mapping[str, Entry], name: str, where: str) -> Entry:
    """Look up a configured choice.

    Parameters
    ----------
    options
        The dict that lists every choice.
    name
        The choice asked for.
    where
        The config key, for the message.

    Returns
    -------
    Entry
        ``options[name]``.

    Raises
    ------
    ConfigError
        If `name` is not listed; the message lists the known names and the nearest one.
    """
    if name in options:
        return options[name]
    raise unknown_name(options, name, where)


def unknown_name(known: Iterable[str], name: object, where: str) -> ConfigError:
    """Make the error about a choice that does not exist.

    Parameters
    ----------
    known
        The names that do.
    name
        What came instead.
    where
        The config key.

    Returns
    -------
    ConfigError
        To be raised; it lists the known names and the nearest one.
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{where}={name!r} is not known; it is one of {', '.join(known)}.{hint}")


_ADVICE = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "your quota is used up; free some space or choose another disk",
    errno.EFBIG: "the file system or a limit allows no larger files; choose another disk",
    errno.EACCES: "you may not write there; choose another folder",
    errno.EPERM: "you may not write there; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.ENOENT: "the folder above it does not exist; make it first",
}


def output_error(path: Path, error: OSError) -> OutputError:
    """Turn an error of the file system into a message that says what to do.

    Parameters
    ----------
    path
        What was being written.
    error
        What the system said.

    Returns
    -------
    OutputError
        To be raised from `error`; its ``errno`` is kept.
    """
    reason = error.strerror or str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0, "try again or choose another folder")
    found = OutputError(f"{path} cannot be written: {reason}; {advice}.")
    found.errno = error.errno
    return found
