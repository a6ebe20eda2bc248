"""What a fit logs, written as it goes on: metrics.csv, and the event file that TensorBoard reads."""

from __future__ import annotations

import csv
import io
import logging
import os
import socket
import time
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING

from scamac_scale.durable.atomic import atomic_file
from scamac_scale.durable.plain import open_plain, set_aside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from tensorboard.summary.writer.record_writer import RecordWriter

logger = logging.getLogger(__name__)

SAVE_EVERY_ROWS = 50
STEP = "step"
MAX_ROW_BYTES = 2**16


class MetricsTable:
    """A CSV file with a row for every logged step: complete rows, whatever fails.

    Parameters
    ----------
    path
        The file. Its first rows are kept, the rest is removed.
    n_rows
        How many are kept; fewer where the file is damaged.

    Attributes
    ----------
    n_rows
        Rows so far, also those that are not written yet.

    Notes
    -----
    The columns are sorted. A column that appears later is added to the header, and the rows before leave it empty.
    """

    def __init__(self, path: Path, n_rows: int = 0) -> None:
        self._path = path
        kept = self._kept(n_rows)
        self.n_rows = len(kept)
        self._columns: list[str] = []
        self._pending: list[Mapping[str, object]] = []
        if kept:
            self._replace(kept, _columns_of(kept))
        else:
            path.unlink(missing_ok=True)

    def _kept(self, n_rows: int) -> list[dict[str, str]]:
        """Rows to go on after; a damaged table is set aside, and what is sound of it is kept."""
        found: list[dict[str, str]] = []
        if n_rows == 0:
            return found
        if not os.path.lexists(self._path):
            logger.warning("%s is missing: its first %d rows are lost", self._path, n_rows)
            return found
        try:
            found.extend(islice(read_rows(self._path), n_rows))
        except DamagedTableError as error:
            found = error.rows
        if len(found) < n_rows:
            aside = set_aside(self._path)
            logger.warning(
                "%s is damaged after %d of %d rows; the rest is lost here, the file as it was is kept as %s",
                *(self._path, len(found), n_rows, aside.name),
            )
        return found

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add a row; some are written together."""
        self._pending.append({**values, STEP: step})
        self.n_rows += 1
        if len(self._pending) >= SAVE_EVERY_ROWS:
            self.save()

    def save(self) -> None:
        """Write the rows that are not written yet."""
        if not self._pending:
            return
        columns = sorted({*self._columns, *_columns_of(self._pending)})
        if columns == self._columns:
            self._append()
        else:
            self._replace(chain(self._written(), self._pending), columns)
        self._pending = []

    def _append(self) -> None:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns).writerows(self._pending)
        content = memoryview(text.getvalue().encode())
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        # a buffer would write again, when it is closed, what has failed
        with os.fdopen(os.open(self._path, flags, 0o666), "ab", buffering=0) as file:
            n_bytes = os.fstat(file.fileno()).st_size
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                with suppress(OSError):  # no half of a row stays
                    os.truncate(self._path, n_bytes)
                raise

    def _replace(self, rows: Iterable[Mapping[str, object]], columns: list[str]) -> None:
        with atomic_file(self._path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        self._columns = columns

    def _written(self) -> Iterator[Mapping[str, object]]:
        if self._columns:
            with suppress(DamagedTableError):  # by somebody, since this process wrote it: what is sound stays
                yield from islice(read_rows(self._path), self.n_rows - len(self._pending))


def _columns_of(rows: Iterable[Mapping[str, object]]) -> list[str]:
    return sorted({name for row in rows for name in row})


class DamagedTableError(ValueError):
    """A row of a metrics.csv that nobody has written; `rows` are those before it."""

    def __init__(self, reason: str, rows: list[dict[str, str]]) -> None:
        super().__init__(f"{reason} after {len(rows)} rows")
        self.rows = rows


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Read a metrics.csv row by row, what each has.

    Parameters
    ----------
    path
        A plain file; nothing else is opened. A last row that is cut off, as by a kill, is passed over.

    Yields
    ------
    dict
        Columns to numbers, as they stand there; never an empty one.

    Raises
    ------
    DamagedTableError
        At the first row that is not whole, or holds what is no number.
    OSError
        If it cannot be read.
    """
    found: list[dict[str, str]] = []
    with os.fdopen(open_plain(path), "rb") as file:
        try:
            columns = _cells(file.readline(MAX_ROW_BYTES))
            if STEP not in columns or len(set(columns)) != len(columns):
                raise ValueError("its first line does not name columns")
            while line := file.readline(MAX_ROW_BYTES):
                if not line.endswith(b"\n") and len(line) < MAX_ROW_BYTES:
                    return
                cells = _cells(line)
                if len(cells) != len(columns):
                    raise ValueError("a row has another length")
                row = {name: value for name, value in zip(columns, cells, strict=True) if value}
                int(row[STEP])
                for value in row.values():
                    float(value)
                found.append(row)
                yield row
        except (KeyError, ValueError, csv.Error) as error:
            raise DamagedTableError(" ".join(str(error).split())[:200], found) from error


def _cells(line: bytes) -> list[str]:
    text = line.decode()
    if not text.endswith("\n"):
        raise ValueError("a line does not end")
    return next(csv.reader([text]), [])


class EventFile:
    """A file of scalars for TensorBoard, made when the first are added.

    Parameters
    ----------
    folder
        Where it shall lie; made if it is missing.
    purge_step
        Of a run that goes on: TensorBoard drops what files before hold from this step on. None drops nothing.

    Notes
    -----
    TensorBoard's own records and protocol buffers, without the writers of torch and lightning, whose import takes seconds.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._folder = folder
        self._purge_step = purge_step
        self._file: BinaryIO | None = None
        self._records: RecordWriter | None = None

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve; TensorBoard sees it at once."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        records = self._records or self._open()
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        records.write(Event(wall_time=time.time(), step=step, summary=Summary(value=points)).SerializeToString())
        records.flush()

    def _open(self) -> RecordWriter:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder.mkdir(exist_ok=True)
        now = time.time()
        # TensorBoard reads files in the order of their names
        name = f"events.out.tfevents.{now:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (self._folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        if self._purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._records.write(Event(wall_time=now, step=self._purge_step, session_log=start).SerializeToString())
        return self._records

    def close(self) -> None:
        """Close it, if it was made."""
        if self._file is not None:
            self._file.close()


class MetricsLog:
    """A metrics.csv and TensorBoard files, to which the same is added.

    Parameters
    ----------
    table
        The CSV file.
    events
        Folder of the TensorBoard files.
    n_rows, step
        Of a run that goes on: how many rows are kept, and the step from which on curves are drawn anew.
    """

    def __init__(self, table: Path, events: Path, n_rows: int = 0, step: int | None = None) -> None:
        self._table = MetricsTable(table, n_rows)
        self._events = EventFile(events, step)

    @property
    def n_rows(self) -> int:
        """Rows so far."""
        return self._table.n_rows

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add what was measured at a step."""
        self._table.add(values, step)
        self._events.add(values, step)

    def save(self) -> None:
        """Write all that was added."""
        self._table.save()

    def close(self) -> None:
        """Write all that was added, and close the files."""
        try:
            self._table.save()
        finally:
            self._events.close()
