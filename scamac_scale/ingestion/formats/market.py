"""Matrix Market files (``.mtx``): the header, and a stream of checked entries."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.formats.text import largest_unpacked, open_text, warn_of_no_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO, Any

    from numpy.typing import NDArray

BLOCK_BYTES = 2**24
"""Of text, parsed at a time."""
LINE_BYTES = 2**12
"""Of one line."""
LEAST_BYTES = 6
"""Of an entry and its line end: ``1 1 1``."""
MOST_COMMENTS = 100_000
"""Lines before the sizes."""

_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
"""A value: ``float`` takes underscores and words, too."""
_WRONG = {
    1: "expected three numbers: row, column, value",
    2: "the row is not from 1 to {0:,}",
    3: "the column is not from 1 to {1:,}",
    4: "there is something behind the value",
}


class Header(NamedTuple):
    """What a file says before its entries.

    Attributes
    ----------
    n_rows, n_columns
        Of the matrix.
    n_values
        Entries.
    is_whole
        Whether values are whole numbers.
    n_lines
        Lines of the header.
    """

    n_rows: int
    n_columns: int
    n_values: int
    is_whole: bool
    n_lines: int


def read_header(path: Path) -> Header:
    """Read the header of a file.

    Raises
    ------
    InputError
        If it is none of a general coordinate matrix of numbers, or promises more entries than the file has bytes for.
    """
    with open_text(path) as file:
        header = _header(file, path)
    if header.n_values * LEAST_BYTES - 1 > largest_unpacked(path):
        raise InputError(
            f"{path} promises {header.n_values:,} values, for which it is too small; it was cut off, copy or write it again."
        )
    return header


def _header(file: IO[bytes], path: Path) -> Header:
    words = file.readline(LINE_BYTES).decode(errors="replace").lower().split()
    if len(words) != 5 or words[0] != "%%matrixmarket" or words[1] != "matrix":
        raise InputError(f"{path} does not begin as a Matrix Market file does (%%MatrixMarket matrix coordinate ...).")
    _, _, form, field, symmetry = words
    if form != "coordinate":
        raise InputError(
            f"{path} is a Matrix Market file of form {form!r}; expected coordinate: write it with "
            "scipy.io.mmwrite(path, scipy.sparse.coo_matrix(values))."
        )
    if field not in ("integer", "unsigned-integer", "real", "double"):
        what = "tells where genes were found, not how much" if field == "pattern" else "holds no real numbers"
        raise InputError(f"{path} is a Matrix Market file of {field!r}, which {what}; give the matrix of counts.")
    if symmetry != "general":
        raise InputError(f"{path} is a {symmetry} matrix, which is none of genes by cells; expected general.")
    for n_lines in range(2, MOST_COMMENTS):
        line = file.readline(LINE_BYTES)
        if not line:
            raise InputError(f"{path} ends before it says its size; it was cut off, copy or write it again.")
        if line.lstrip().startswith(b"%") or not line.strip():
            continue
        sizes = line.split()
        if len(sizes) != 3 or not all(size.isdigit() and len(size) < 18 for size in sizes):
            raise InputError(
                f"{path}: line {n_lines} is {line.decode(errors='replace').strip()!r:.80}, expected rows, columns and values of the "
                "matrix as three whole numbers; the file is damaged."
            )
        n_rows, n_columns, n_values = map(int, sizes)
        return Header(n_rows, n_columns, n_values, field in ("integer", "unsigned-integer"), n_lines)
    raise InputError(f"{path} has more than {MOST_COMMENTS:,} lines of comments; expected a matrix.")


def read_entries(
    path: Path, header: Header
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Read all entries.

    Parameters
    ----------
    path
        The file.
    header
        Of `read_header`.

    Yields
    ------
    rows, columns : ndarray
        From 0 on; within the sizes of the header.
    values : ndarray
        Each the double nearest to what is written.

    Raises
    ------
    InputError
        Names the line that is wrong; also if there are fewer or more entries than the header says.
    """
    with open_text(path) as file:
        _header(file, path)
        n_lines, n_left, rest = header.n_lines, header.n_values, b""
        while True:
            content = file.read(BLOCK_BYTES)
            block = rest + content
            end = len(block) if not content else block.rfind(b"\n") + 1
            if len(block) - end > LINE_BYTES:
                raise InputError(f"{path}: line {n_lines + 1} has more than {LINE_BYTES:,} bytes; the file is damaged.")
            block, rest = block[:end], block[end:]
            rows, columns, values, n_read = _parsed(block, header, path, n_lines)
            n_lines += n_read
            n_left -= len(values)
            if n_left < 0:
                raise InputError(
                    f"{path} has more than the {header.n_values:,} values that its header promises; the file is damaged, write it again."
                )
            if len(values):
                yield rows, columns, values
            if not content:
                if block:
                    warn_of_no_end(path)
                break
    if n_left:
        raise InputError(
            f"{path} ends after {header.n_values - n_left:,} of the {header.n_values:,} values that its header promises; it was cut "
            "off, copy or write it again."
        )


def _parsed(block: bytes, header: Header, path: Path, n_lines: int) -> tuple[Any, Any, Any, int]:
    n_most = len(block) // (LEAST_BYTES - 1) + 1
    rows, columns, values = np.empty(n_most, np.int64), np.empty(n_most, np.int64), np.empty(n_most)
    texts = np.empty((n_most, 2), np.int64)
    letters = np.frombuffer(block, np.uint8)
    said = np.zeros(4, np.int64)
    with np.errstate(all="ignore"):
        _parse(letters, header.n_rows, header.n_columns, rows, columns, values, texts, said)
    n_values, n_read, wrong, at = said.tolist()
    if wrong:
        start = block.rfind(b"\n", 0, at) + 1
        line = block[start : start + 80].partition(b"\n")[0].decode(errors="replace")
        why = _WRONG[wrong].format(header.n_rows, header.n_columns)
        raise InputError(
            f"{path}: line {n_lines + n_read + 1} is {line!r}: {why}; the file is damaged, write it again."
        )
    rows, columns, values = rows[:n_values], columns[:n_values], values[:n_values]
    for entry in np.flatnonzero(texts[:n_values, 1]).tolist():  # more digits than fit: rare
        low, high = texts[entry].tolist()
        text = block[low:high]
        if _NUMBER.fullmatch(text) is None:
            line_number = n_lines + block.count(b"\n", 0, low) + 1
            raise InputError(
                f"{path}: line {line_number} holds {text[:40].decode(errors='replace')!r} as a value; expected a number such as 12, 0.5 "
                "or 1e-3. The file is damaged, write it again."
            )
        values[entry] = float(text)
    if header.is_whole and not np.array_equal(values, np.rint(values)):
        value = float(values[np.argmax(values != np.rint(values))])
        raise InputError(
            f"{path} says that it holds whole numbers, and has {value:g}; the file is damaged, write it again."
        )
    return rows, columns, values, n_read


POWERS = np.array([float(f"1e{power}") for power in range(23)])
"""Of ten, all that float64 holds exactly."""


@compiled
def _number(text: NDArray[np.uint8], low: int, high: int) -> tuple[float, bool]:  # pragma: no cover  compiled
    """Read a number between two places; whether it is exact: of few digits, and a power of ten that float64 holds."""
    place = low
    is_negative = text[place] == 45
    if is_negative or text[place] == 43:
        place += 1
    mantissa, power, n_digits, n_seen, is_point = 0, 0, 0, 0, False
    while place < high and (48 <= text[place] <= 57 or (text[place] == 46 and not is_point)):
        if text[place] == 46:
            is_point = True
        else:
            mantissa = mantissa * 10 + (text[place] - 48)
            n_digits += mantissa > 0
            n_seen += 1
            power -= is_point
            if n_digits > 15:
                break
        place += 1
    is_simple = n_digits <= 15 and n_seen > 0
    if is_simple and place + 1 < high and (text[place] == 101 or text[place] == 69):
        place += 1
        is_down = text[place] == 45
        if is_down or text[place] == 43:
            place += 1
        exponent, n_exponent = 0, 0
        while place < high and 48 <= text[place] <= 57 and n_exponent < 4:
            exponent = exponent * 10 + (text[place] - 48)
            n_exponent += 1
            place += 1
        is_simple = n_exponent > 0
        power += -exponent if is_down else exponent
    if not (is_simple and place == high and -22 <= power <= 22):
        return 0.0, False
    value = mantissa / POWERS[-power] if power < 0 else mantissa * POWERS[power]
    return -value if is_negative else value, True


@compiled
def _parse(
    text: NDArray[np.uint8],
    n_rows: int,
    n_columns: int,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.float64],
    texts: NDArray[np.int64],
    said: NDArray[np.int64],
) -> None:  # pragma: no cover  compiled
    """Parse lines; `said` is entries, whole lines, what is wrong, and where. A value that needs more care leaves its place in `texts`."""
    at, n, end = 0, 0, len(text)
    while at < end:
        begin = at
        while at < end and (text[at] == 32 or text[at] == 9 or text[at] == 13):
            at += 1
        if at == end:
            break
        if text[at] == 10 or text[at] == 37:  # nothing, or a comment
            while at < end and text[at] != 10:
                at += 1
            at += 1
            said[1] += 1
            continue
        for which in range(2):
            number, n_digits = 0, 0
            while at < end and 48 <= text[at] <= 57 and n_digits < 19:
                number = number * 10 + (text[at] - 48)
                n_digits += 1
                at += 1
            is_ended = at < end and (text[at] == 32 or text[at] == 9)
            if n_digits == 0 or n_digits > 18 or not is_ended:
                said[0], said[2], said[3] = n, 1, begin
                return
            if number < 1 or number > (n_rows if which == 0 else n_columns):
                said[0], said[2], said[3] = n, 2 + which, begin
                return
            if which == 0:
                rows[n] = number - 1
            else:
                columns[n] = number - 1
            while at < end and (text[at] == 32 or text[at] == 9):
                at += 1
        low = at
        while at < end and text[at] != 32 and text[at] != 9 and text[at] != 13 and text[at] != 10:
            at += 1
        high = at
        if low == high:
            said[0], said[2], said[3] = n, 1, begin
            return
        values[n], is_simple = _number(text, low, high)
        texts[n, 0], texts[n, 1] = low, 0 if is_simple else high
        while at < end and (text[at] == 32 or text[at] == 9 or text[at] == 13):
            at += 1
        if at < end and text[at] != 10:
            said[0], said[2], said[3] = n, 4, begin
            return
        at += 1
        n += 1
        said[1] += 1
    said[0] = n
