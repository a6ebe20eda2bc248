"""Lists that somebody wrote, of genes or of cells: text with an entry on each line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scamac_scale.durable.plain import read_plain
from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def read_text(path: Path, setting: str, limit: int, advice: str) -> str:
    """Read a plain text in UTF-8, with or without a mark at its start.

    Parameters
    ----------
    path
        The file.
    setting
        That names it, for messages.
    limit
        Bytes that it may have.
    advice
        What to give instead, for messages.

    Raises
    ------
    InputError
        If it cannot be read, is larger, no plain file, or no text.
    """
    named = f"{setting}={path}"
    try:
        text = read_plain(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{named} is no text in UTF-8 (byte {error.start}); {advice}.") from error
    except ValueError as error:
        raise InputError(f"{named} cannot be read ({error}); {advice}.") from error
    except OSError as error:
        raise InputError(f"{named} cannot be read ({error.strerror or error}); {advice}.") from error
    if "\0" in text:
        raise InputError(f"{named} is no text, it holds zero bytes; {advice}.")
    return text


def unquoted(name: str) -> str:
    """Take the quotation marks off that R and others write around a name."""
    name = name.strip()
    return name[1:-1].strip() if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name
