"""Files of text from strangers, packed by gzip or not: read in pieces, with bounds, and with one sentence where they are cut off."""

from __future__ import annotations

import contextlib
import gzip
import logging
import zlib
from typing import IO, TYPE_CHECKING

from scamac_scale.durable.foreign import odd_kind
from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

LINE_BYTES = 2**16
"""Of one line."""
MOST_BYTES = 2**30
"""Of the names of a file, unpacked."""
MOST_FOLDED = 1032
"""Bytes that gzip packs into one, at most."""


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, whose first bytes tell whether it is packed by gzip.

    Yields
    ------
    file
        To be read within the block.

    Raises
    ------
    InputError
        If it is no plain file, cannot be read, or is cut off or damaged where it is packed.
    """
    if odd := odd_kind(path):
        raise InputError(f"{path} is {odd}, which is not opened.")
    try:
        with path.open("rb") as plain:
            is_packed = is_gzip(plain)
            if not is_packed:
                yield plain
                return
            with gzip.GzipFile(fileobj=plain) as packed:
                yield packed  # type: ignore[misc]  # has all that is used
    except EOFError as error:
        raise InputError(f"{path} was cut off: its end is missing; copy or write it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged where gzip packed it ({error}); copy or write it again.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def is_gzip(file: IO[bytes]) -> bool:
    """Look at the first two bytes, and go back to them."""
    head = file.read(2)
    file.seek(0)
    return head == b"\x1f\x8b"


def largest_unpacked(path: Path) -> int:
    """Bytes that a file can hold at most, unpacked."""
    with open_text(path) as file:
        return path.stat().st_size * (MOST_FOLDED if isinstance(file, gzip.GzipFile) else 1)


def warn_of_no_end(path: Path) -> None:
    """Say that a file may have been cut off, which nothing else tells where that is in its last line."""
    logger.warning(
        "%s has no line end at its end; if it was cut off there, its last line is wrong: compare its size", path
    )


def read_lines(path: Path, n_most: int) -> list[str]:
    """Read lines of names.

    Parameters
    ----------
    path
        The file.
    n_most
        So many are expected at most; a few more are read, so that a wrong number can be told.

    Returns
    -------
    list of str
        Without their ends, and without empty ones at the end.

    Raises
    ------
    InputError
        If a line, or the whole, is longer than names are, or it is no text.
    """
    lines: list[str] = []
    n_bytes = 0
    with open_text(path) as file:
        while len(lines) < n_most + 2:
            line = file.readline(LINE_BYTES + 1)
            n_bytes += len(line)
            if len(line) > LINE_BYTES or n_bytes > MOST_BYTES:
                raise InputError(f"{path}: line {len(lines) + 1} is too long for a name; expected a table of names.")
            if not line:
                break
            if not line.endswith(b"\n") and len(line) <= LINE_BYTES:
                warn_of_no_end(path)
            if b"\0" in line:
                raise InputError(
                    f"{path}: line {len(lines) + 1} is no text (it holds a zero byte); the file is damaged, copy or write it again."
                )
            try:
                lines.append(line.decode().rstrip("\r\n"))
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: line {len(lines) + 1} is no text ({error.reason}); the file is damaged, copy or write it again."
                ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    if lines and lines[0].startswith("\ufeff"):
        lines[0] = lines[0][1:]
    return lines


def read_names_table(path: Path, n_most: int) -> list[list[str]]:
    """Read a table of names: columns between tabs, in quotes or not.

    Parameters and errors as of `read_lines`; a line without a name, or with a quote that does not end, is refused, too.
    """
    table = []
    for at, line in enumerate(read_lines(path, n_most)):
        fields = [_unquoted(field) for field in line.split("\t")]
        if not (fields[0] or "").strip() or None in fields:
            raise InputError(
                f"{path}: line {at + 1} has no name, or a quote that does not end; the file is damaged, copy or write it again."
            )
        table.append([field for field in fields if field is not None])
    return table


def _unquoted(field: str) -> str | None:
    """Take off the quotes that R puts around texts; None for one that does not end."""
    if not field.startswith('"'):
        return field
    inner = field[1:-1].replace('""', "")
    return field[1:-1].replace('""', '"') if len(field) > 1 and field.endswith('"') and '"' not in inner else None
