"""Standard output and error as they are: of any encoding, closed, full, or with a reader who has gone.

Text that cannot be written never ends the work that it tells of.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from scamac_scale.host.printable import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Outlet:
    """A text stream that escapes what it is given, and goes silent when it cannot be written.

    Parameters
    ----------
    stream
        Standard output or error; None where it was closed.

    Attributes
    ----------
    raw
        The same without escapes, for what draws by control sequences and has escaped what it draws.
    error
        Why the last text was lost; None where none was. A reader who has gone is none.
    """

    def __init__(self, stream: TextIO | None, *, is_raw: bool = False) -> None:
        self._stream, self._is_raw = stream, is_raw
        self._error: OSError | None = None
        self._is_lost = stream is None
        self.raw: Outlet = self if is_raw else Outlet(stream, is_raw=True)

    @property
    def error(self) -> OSError | None:
        """Why text was lost, whether it was drawn or not."""
        return self._error or self.raw._error

    def write(self, text: str) -> int:
        """Write text; where that fails, this and all that follows is dropped."""
        if not self._is_lost and self._stream is not None:
            shown = text if self._is_raw else printable(text, keep="\n")
            try:
                try:
                    self._stream.write(shown)
                except UnicodeEncodeError:  # a stream whose way to replace could not be set
                    self._stream.write(shown.encode("ascii", "backslashreplace").decode("ascii"))
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Bring out what is held back."""
        if not self._is_lost and self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: OSError | ValueError) -> None:
        """Go silent; what the stream still holds goes nowhere, so that the end of the process does not fail by it."""
        self._is_lost = True
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            self._error = error
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, cast("TextIO", self._stream).fileno())
            os.close(nowhere)

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def closed(self) -> bool:
        """Never, for those who ask before they write."""
        return False

    def isatty(self) -> bool:
        """Whether a person reads along."""
        with suppress(OSError, ValueError):
            return not self._is_lost and self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """Give the descriptor of the stream."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:  # Any: whatever else the stream has
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def outlets() -> Iterator[tuple[Outlet, Outlet]]:
    """Put outlets in the place of standard output and error, and show warnings as lines.

    Yields
    ------
    tuple
        Of standard output, and of standard error.
    """
    _fill_descriptors()
    before = sys.stdout, sys.stderr, warnings.showwarning
    for stream in before[:2]:
        with suppress(AttributeError, OSError, ValueError):
            cast("Any", stream).reconfigure(errors="backslashreplace")
        with suppress(AttributeError, OSError, ValueError):
            os.set_blocking(stream.fileno(), True)  # else a reader who is slow loses text
    out, error = Outlet(before[0]), Outlet(before[1])
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", error)
    if warnings.showwarning is _SHOWWARNING:  # else somebody collects them
        warnings.showwarning = _show_warning
    try:
        yield out, error
    finally:
        out.raw.flush()
        error.raw.flush()
        sys.stdout, sys.stderr, warnings.showwarning = before


def drawing(stream: TextIO) -> TextIO:
    """Give the stream for what draws by control sequences; it escapes by itself what it draws."""
    return cast("TextIO", stream.raw) if isinstance(stream, Outlet) else stream


_SHOWWARNING = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning of any package as one line; where in its code it arose is of no use to the person who reads it."""
    (file or sys.stderr).write(f"warning: {one_line(message)}\n")


def _fill_descriptors() -> None:
    """Open the null device for each standard descriptor that was closed: else the next file that is opened takes its number."""
    with suppress(OSError):
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # takes the least free number
                os.set_inheritable(number, True)
