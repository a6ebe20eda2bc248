"""Predictions on disk, written by all ranks into one AnnData zarr, or an h5ad by way of one: complete or absent, and to be gone on with.

In a hidden folder beside the output lie the rows as they come (`rows`), and how far they have come (`journal`). When all are there,
every rank turns its share of the chunks into their final form (`assemble`), in a folder that is named after the run: a rank of an
earlier one that wakes up late writes elsewhere. Only rank 0 has the lock, makes the folder and gives the result its name.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
import uuid
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scamac_scale.durable.atomic import (
    atomic_folder,
    bytes_below,
    check_output,
    check_room,
    flush_tree,
    partial_folder,
    scratch_folder,
    writing,
)
from scamac_scale.durable.faults import reach
from scamac_scale.durable.save_or_stop import SaveOrStop
from scamac_scale.errors import LostRankError, OutputError, ResumeError, StoppedError
from scamac_scale.infer.output.assemble import Assembly
from scamac_scale.infer.output.h5ad import Conversion
from scamac_scale.infer.output.journal import Progress, check_same, read_progress, write_progress
from scamac_scale.infer.output.rows import PredictedRows
from scamac_scale.infer.output.table import (
    LABEL_KEY,
    LABEL_PROBABILITY_KEY,
    Table,
    check_target,
)
from scamac_scale.nn.embed import EMBED_CELLS
from scamac_scale.ranks.collectives import agree, barrier, from_first, gather_objects
from scamac_scale.ranks.signals import Signals
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.store.obs import storable_frame
from scamac_scale.sweep import TICK_BATCHES

if TYPE_CHECKING:
    from types import TracebackType

    from scamac_scale.cells.arrays import FloatArray, IntArray

logger = logging.getLogger(__name__)

JOURNAL_S = 30.0
"""Seconds between two entries of the journal: what is lost if a process is killed. Each waits for the disk."""
MEET_S = 10.0
"""Seconds in which a file of rank 0 has to be seen by the others: file systems over the network are not quicker, sometimes."""
KEPT_ON = (StoppedError, ResumeError, LostRankError, KeyboardInterrupt)
"""Ends that leave what was done where it is."""


class DiskOutput:
    """Predictions streamed to an AnnData zarr, or to an h5ad by way of one; complete or absent. A context, on all ranks alike.

    Parameters
    ----------
    path
        Target ending in ``.zarr`` or ``.h5ad``; must not exist.
    table
        What is going to come.
    belongs
        From `journal.identity`: what a prediction that was stopped must have in common with this one.
    world
        This rank, and how many there are: each writes some of the rows.
    resume
        Whether to go on with what one that was stopped has left, if it has.
    scratch_bytes
        What else lies beside it while it is made.

    Attributes
    ----------
    turns
        Of the sweep, done before.
    needs_rows
        False where a prediction that was stopped had come so far that only its last part is left.

    Raises
    ------
    InputError
        If two columns of `obs` would have the same name.
    OutputError
        If the target exists, ends otherwise, cannot be written, or its disk has no room.
    ResumeError
        If what is to be gone on with is of other work; it is kept.
    StoppedError
        After a signal; what was done is kept, too.
    """

    def __init__(
        self,
        path: str | Path,
        table: Table,
        belongs: dict[str, Any],
        *,
        world: World = ALONE,
        resume: bool = False,
        scratch_bytes: int = 0,
    ) -> None:
        self.table, self._belongs, self._world, self._resume = table, belongs, world.brisk(), resume
        self.path = Path(from_first(lambda: str(check_target(path)), world))
        self._partial = partial_folder(self.path)
        self._is_zarr = self.path.suffix == ".zarr"
        self._obs: Any = None  # Any: a DataFrame, on rank 0
        from_first(lambda: self._check(scratch_bytes), world)
        self._stack, self._home = ExitStack(), ExitStack()
        self._signals = Signals()
        self._rows = PredictedRows(self._partial, table.row_widths)
        self._conversion: Conversion | None = None
        self.turns, self.needs_rows = 0, True
        self._watch: SaveOrStop[None] = SaveOrStop(
            self._world, self._signals, lambda _: self._save(), "what was predicted is kept", every_s=JOURNAL_S
        )

    def _check(self, scratch_bytes: int) -> None:
        """Refuse what cannot be written, before any work."""
        table = self.table
        keys = (*table.cluster_names, *((LABEL_KEY, LABEL_PROBABILITY_KEY) if table.labels else ()))
        self._obs = storable_frame(table.obs.assign(**dict.fromkeys(keys, 0)))
        n_bytes = (
            4 * len(table.obs) * (2 * sum(table.row_widths.values()) + 1)
        )  # rows as they come, and in their final form
        check_room(self.path, max(0, n_bytes + scratch_bytes - bytes_below(self._partial)))

    # ------------------------------------------------------------------ begin and end

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self._signals)
            self._progress = Progress(**from_first(lambda: asdict(self._open()), self._world))
            self.turns, self.needs_rows = self._progress.turns, not self._progress.assembled
            self._zarr = self._partial / (self._progress.assembled or f"{self._progress.job}.zarr")
            _meet(self._partial, self._progress.job, self._world)
            if self.needs_rows:
                with writing(self.path):
                    self._rows.open()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _open(self) -> Progress:
        """Take the lock, make the folder or take it over, and say in the journal whose it is."""
        self._new = self._home.enter_context(
            atomic_folder(self.path, resumes=self._resume, keeps_on=KEPT_ON, rename_point="predict.rename")
            if self._is_zarr
            else scratch_folder(self.path, resumes=self._resume, keeps_on=KEPT_ON)
        )
        check_output(self.path)  # another job may have written it while we came here
        with writing(self.path):
            found = read_progress(self._partial) if self._resume else None
            now = Progress(uuid.uuid4().hex, self._belongs, self._world.size, TICK_BATCHES * EMBED_CELLS)
            if found is not None:
                check_same(found.belongs, self._belongs, self.path)
            self._clear(found)
            if found is not None:
                is_same_cut = (found.n_ranks, found.turn_cells) == (now.n_ranks, now.turn_cells)
                turns = found.turns if is_same_cut and all(path.exists() for path in self._rows.paths) else 0
                is_there = (self._partial / found.assembled).is_dir()
                now = replace(now, turns=turns, assembled=found.assembled if is_there else "")
                logger.info("%s: %s", self.path, _tell(now, found, len(self.table.obs)))
            if not now.assembled:
                for path in self._rows.paths:
                    path.touch()
            write_progress(self._partial, now)
        return now

    def _clear(self, found: Progress | None) -> None:
        """Remove what cannot be gone on with: all where there is no journal, and what was not in its final form."""
        for path in self._partial.iterdir():
            is_final = path.suffix in (".zarr", ".h5ad") or path == self._new
            is_odd = path.is_symlink() or not (path.is_file() or path.is_dir())
            if found is None or is_odd or (is_final and path.name != found.assembled):
                _remove(path)
        self._new.mkdir(exist_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()
        if self._conversion is not None:
            self._conversion.end()
        if isinstance(error, LostRankError) and error.exit_code != StoppedError.exit_code:
            gone = OutputError("what failed elsewhere is not kept here")
            self._home.__exit__(OutputError, gone, None)
        else:
            self._home.__exit__(kind, error, trace)
        self._stack.__exit__(kind, error, trace)

    # ------------------------------------------------------------------ rows as they come

    def write(self, rows: IntArray, labels: IntArray, blocks: dict[str, FloatArray]) -> None:
        """Write some rows, in any order."""
        with writing(self.path):
            self._rows.write(rows, labels, blocks)
            reach("predict.block")

    def tick(self, turns: int) -> None:
        """Look around after a turn of the sweep, on all ranks: write the journal when it is time, stop after a signal."""
        self.turns = turns
        self._watch.look(self._world)

    def look(self, *, is_patient: bool = False) -> None:
        """Stop if a rank got a signal; all ranks ask equally often, after work that takes some longer than others where patient."""
        self._watch.look(self._world.patient() if is_patient else self._world, only_stops=True)

    def _save(self) -> None:
        """Force all rows to the disk, then say so in the journal."""
        with writing(self.path):
            self._rows.flush()
        barrier(self._world.patient())  # all have
        from_first(lambda: self._record(replace(self._progress, turns=self.turns)), self._world)

    def _record(self, progress: Progress) -> None:
        self._progress = progress
        with writing(self.path):
            write_progress(self._partial, progress)

    # ------------------------------------------------------------------ their final form

    def finish(self, n_clusters: int, uns: dict[str, Any]) -> Path:
        """Give all rows their final form, and the target its name; to be called on all ranks when all rows were written.

        Returns
        -------
        Path
            The target.
        """
        if self.needs_rows:
            if self._world.size > 1:
                self._watch.save()
            assembly = Assembly(self._zarr, self.table, self._rows, self.path)
            from_first(assembly.begin, self._world)
            assembly.write_chunks(self._world, self.look)
            barrier(self._world.patient())  # all have written theirs
            from_first(lambda: assembly.write_columns(self._obs, n_clusters, uns), self._world)
        if not self._is_zarr:
            if self.needs_rows:
                from_first(self._keep_zarr, self._world)
            self._make_h5ad()
        from_first(self._commit, self._world)
        return self.path

    def _commit(self) -> None:
        if self._is_zarr:
            with writing(self.path):
                self._new.rmdir()
                self._zarr.rename(self._new)
        self._home.close()

    def _keep_zarr(self) -> None:
        """Say that all arrays are in their final form, and make room for the h5ad."""
        with writing(self.path):
            flush_tree(self._zarr)
            self._record(replace(self._progress, assembled=self._zarr.name))
            for path in self._rows.paths:
                path.unlink()

    def _make_h5ad(self) -> None:
        conversion = Conversion(self._zarr, self._partial / f"{self._progress.job}.h5ad", self.path)
        self._conversion = conversion
        from_first(conversion.start, self._world)
        while agree([conversion.is_running()], self._world)[0]:
            self.look()
        self.look()  # Ctrl-C reaches the child, too
        from_first(conversion.finish, self._world)


def _meet(folder: Path, job: str, world: World) -> None:
    """See whether all ranks see the journal of a job in the same folder."""
    until_s = time.monotonic() + MEET_S
    sees = False
    while not sees and time.monotonic() < until_s:
        found = read_progress(folder)
        sees = found is not None and found.job == job
        if not sees:
            time.sleep(MEET_S / 100)
    blind = [rank for rank, seen in enumerate(gather_objects(sees, world)) if not seen]
    if blind:
        raise OutputError(
            f"{folder}, where rank 0 writes, is not seen by rank {', '.join(map(str, blind))}: name an output on a file system that "
            "all of them share."
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _tell(now: Progress, found: Progress, n_cells: int) -> str:
    """Where a prediction goes on."""
    if now.assembled:
        return "all cells are predicted, the rest is done"
    if now.turns == 0 and found.turns > 0:
        return f"begun on {found.n_ranks} ranks, all cells are predicted anew on {now.n_ranks}"
    return f"goes on after {min(now.turns * now.turn_cells * now.n_ranks, n_cells):,} of {n_cells:,} cells"
