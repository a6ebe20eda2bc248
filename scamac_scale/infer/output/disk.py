"""Predictions on disk, written by all ranks into one AnnData zarr, or an h5ad by way of one: complete or absent, and to be gone on with.

In a hidden folder beside the output lie the rows as they come, in plain files that all ranks write into (`spool`), and how far they
have come (`journal`). When all are there, every rank turns its share of the chunks into their final form, in a folder that is named
after the run: a rank of an earlier one that wakes up late writes elsewhere. Only rank 0 has the lock, makes the folder and gives the
result its name.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scamac_scale.durable.atomic import (
    atomic_folder,
    check_output,
    check_room,
    flush,
    flush_tree,
    partial_folder,
    scratch_folder,
    writing,
)
from scamac_scale.durable.faults import reach
from scamac_scale.durable.rows import FieldFile
from scamac_scale.durable.watch import Watch
from scamac_scale.errors import LostRankError, OutputError, ResumeError, StoppedError
from scamac_scale.infer.output import convert
from scamac_scale.infer.output.journal import Progress, check_same, read_progress, write_progress
from scamac_scale.infer.output.table import (
    CLUSTER_KEY,
    DENOISED_KEY,
    UNS_KEY,
    Table,
    check_target,
    chunk_cells,
    cluster_column,
)
from scamac_scale.nn.embed import BLOCK_CELLS
from scamac_scale.progress import track
from scamac_scale.reduce import agree, barrier, from_first, gather_objects
from scamac_scale.signals import Signals
from scamac_scale.store.obs import storable_frame
from scamac_scale.sweep import TICK_BATCHES
from scamac_scale.world import ALONE, World

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from scamac_scale.arrays import FloatArray, IntArray

logger = logging.getLogger(__name__)

JOURNAL_S = 30.0
"""Seconds between two entries of the journal: what is lost if a process is killed. Each waits for the disk."""
LOOK_S = 1.0
"""Seconds between two looks at signals while an h5ad is made."""
MEET_S = 10.0
"""Seconds in which a file of rank 0 has to be seen by the others: file systems over the network are not quicker, sometimes."""
LABELS = "labels"
LABEL_CELLS = 16 * 1024
"""Cells whose labels are read at a time."""
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
        self.path: Path = from_first(lambda: check_target(path), world)
        self._partial = partial_folder(self.path)
        self._is_zarr = self.path.suffix == ".zarr"
        self._obs: Any = None  # Any: a DataFrame, on rank 0
        from_first(lambda: self._check(scratch_bytes), world)
        self._stack, self._home = ExitStack(), ExitStack()
        self._signals = Signals()
        self._spools: dict[str, FieldFile] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self.turns, self.needs_rows = 0, True
        self._watch: Watch[None] = Watch(
            self._world, self._signals, lambda _: self._save(), "what was predicted is kept", every_s=JOURNAL_S
        )

    def _check(self, scratch_bytes: int) -> None:
        """Refuse what cannot be written, before any work."""
        table = self.table
        self._obs = storable_frame(table.obs.assign(**{CLUSTER_KEY: 0}))
        n_bytes = (
            4 * len(table.obs) * (2 * sum(table.widths.values()) + 1)
        )  # rows as they come, and in their final form
        check_room(self.path, max(0, n_bytes + scratch_bytes - _bytes_below(self._partial)))

    # ------------------------------------------------------------------ begin and end

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self._signals)
            self._progress = from_first(self._open, self._world)
            self.turns, self.needs_rows = self._progress.turns, not self._progress.assembled
            self._zarr = self._partial / (self._progress.assembled or f"{self._progress.job}.zarr")
            self._meet()
            if self.needs_rows:
                with writing(self.path):
                    for path, widths in self._spooled().items():
                        self._spools |= dict.fromkeys(widths, FieldFile(path, widths))
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _spooled(self) -> dict[Path, dict[str, int]]:
        """Files of rows, and the blocks and widths of each: layers apart, for they are wide."""
        layers = {name: width for name, width in self.table.widths.items() if name == DENOISED_KEY}
        cells = {name: width for name, width in self.table.widths.items() if name != DENOISED_KEY} | {LABELS: 1}
        return {self._partial / "cells.rows": cells, **({self._partial / "layers.rows": layers} if layers else {})}

    def _files(self) -> set[FieldFile]:
        return set(self._spools.values())

    def _open(self) -> Progress:
        """Take the lock, make the folder or take it over, and say in the journal whose it is."""
        options: dict[str, Any] = {"resumes": self._resume, "keeps_on": KEPT_ON}
        self._new = self._home.enter_context(
            atomic_folder(self.path, rename_point="predict.rename", **options)
            if self._is_zarr
            else scratch_folder(self.path, **options)
        )
        check_output(self.path)  # another job may have written it while we came here
        with writing(self.path):
            paths = list(self._spooled())
            found = read_progress(self._partial) if self._resume else None
            now = Progress(uuid.uuid4().hex, self._belongs, self._world.size, TICK_BATCHES * BLOCK_CELLS)
            if found is not None:
                check_same(found.belongs, self._belongs, self.path)
            self._clear(found)
            if found is not None:
                is_same_cut = (found.n_ranks, found.turn_cells) == (now.n_ranks, now.turn_cells)
                turns = found.turns if is_same_cut and all(path.exists() for path in paths) else 0
                now = replace(now, turns=turns, assembled=found.assembled)
                logger.info("%s: %s", self.path, _tell(now, found, len(self.table.obs)))
            if not now.assembled:
                for path in paths:
                    path.touch()
            write_progress(self._partial, now)
        return now

    def _clear(self, found: Progress | None) -> None:
        """Remove what cannot be gone on with: all where there is no journal, and what was not in its final form."""
        for path in self._partial.iterdir():
            is_final = path.suffix in (".zarr", ".h5ad") or path == self._new
            if found is None or (is_final and path.name != found.assembled):
                _remove(path)
        self._new.mkdir(exist_ok=True)

    def _meet(self) -> None:
        """See whether all ranks see the same folder."""
        until_s = time.monotonic() + MEET_S
        sees = False
        while not sees and time.monotonic() < until_s:
            found = read_progress(self._partial)
            sees = found is not None and found.job == self._progress.job
            if not sees:
                time.sleep(MEET_S / 100)
        blind = [rank for rank, seen in enumerate(gather_objects(sees, self._world)) if not seen]
        if blind:
            raise OutputError(
                f"{self._partial}, where rank 0 writes, is not seen by rank {', '.join(map(str, blind))}: name an output on a file "
                "system that all of them share."
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for spool in self._files():
            spool.close()
        self._spools = {}
        if self._child is not None:
            self._child.kill()
            self._child.wait()
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
            for spool in self._files():
                spool.write(rows, {**blocks, LABELS: labels.astype(np.int32).view(np.float32)[:, None]})
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
            for spool in self._files():
                spool.flush()
        barrier(self._world.patient())  # all have
        from_first(lambda: self._record(turns=self.turns), self._world)

    def _record(self, **changes: Any) -> None:  # Any: fields of Progress
        self._progress = replace(self._progress, **changes)
        with writing(self.path):
            write_progress(self._partial, self._progress)

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
            from_first(self._make_zarr, self._world)
            self._write_chunks()
            barrier(self._world.patient())  # all have written theirs
            from_first(lambda: self._write_columns(n_clusters, uns), self._world)
        if not self._is_zarr:
            self._make_h5ad()
        from_first(self._commit, self._world)
        return self.path

    def _commit(self) -> None:
        if self._is_zarr:
            with writing(self.path):
                self._new.rmdir()
                self._zarr.rename(self._new)
        self._home.close()

    def _make_zarr(self) -> None:
        import pandas as pd
        import zarr

        with writing(self.path):
            group = zarr.open_group(self._zarr, mode="w", zarr_format=3)
            group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            _write(group, "var", pd.DataFrame(index=pd.Index(self.table.genes, dtype=object)))
            for name in ("obsm", "obsp", "varm", "varp", "layers"):
                _write(group, name, {})
            for name, width in self.table.widths.items():
                group.create_array(
                    _place_of(name),
                    shape=(len(self.table.obs), width),
                    chunks=(min(len(self.table.obs), chunk_cells(width)), width),
                    dtype="float32",
                    attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
                )

    def _write_chunks(self) -> None:
        """Turn the rows of whole chunks into these, each on one rank."""
        import zarr

        n_cells = len(self.table.obs)
        group: Any = zarr.open_group(self._zarr, mode="r+")  # Any: zarr's members are not typed for slicing
        for name in self.table.widths:
            array, files = group[_place_of(name)], self._zarr / _place_of(name) / "c"
            size = array.chunks[0]
            n_chunks = -(-n_cells // size)
            own = self._world.own(n_chunks)
            n_most = max(len(World(rank, self._world.size).own(n_chunks)) for rank in range(self._world.size))
            with track(f"write {name}", len(own), "chunks") as progress:
                for at in range(n_most):
                    self.look()
                    if at < len(own):
                        start, stop = own[at] * size, min((own[at] + 1) * size, n_cells)
                        with writing(self.path):
                            array[start:stop] = self._spools[name].read(name, start, stop)
                        progress.advance(1)
            with writing(self.path):
                for file in (files / str(chunk) / "0" for chunk in own):
                    if file.exists():  # one of zeros is none
                        flush(file)

    def _write_columns(self, n_clusters: int, uns: dict[str, Any]) -> None:
        import zarr

        with writing(self.path):
            n_cells, read = len(self._obs), self._spools[LABELS].read
            pieces = [read(LABELS, at, min(at + LABEL_CELLS, n_cells)) for at in range(0, n_cells, LABEL_CELLS)]
            labels = np.concatenate(pieces)[:, 0].view(np.int32)
            group = zarr.open_group(self._zarr, mode="r+")
            _write(group, "obs", self._obs.assign(**{CLUSTER_KEY: cluster_column(labels, n_clusters)}))
            _write(group, "uns", {UNS_KEY: uns})
            if not self._is_zarr:
                flush_tree(self._zarr)
                self._record(assembled=self._zarr.name)
                for path in self._spooled():  # makes room
                    path.unlink()

    def _make_h5ad(self) -> None:
        """Convert on rank 0, in a child process: HDF5 on a full disk ends its process with a segmentation fault."""
        new, log = self._partial / f"{self._progress.job}.h5ad", self._partial / "convert.log"
        from_first(lambda: self._start_conversion(new, log), self._world)
        while agree([self._child is not None and _is_running(self._child)], self._world)[0]:
            self.look()
        self.look()  # Ctrl-C reaches the child, too
        from_first(lambda: self._name_h5ad(new, log), self._world)

    def _start_conversion(self, new: Path, log: Path) -> None:
        check_room(self.path, 2 * _bytes_below(self._zarr))
        command = [sys.executable, "-P", "-m", convert.__name__, str(self._zarr), str(new)]
        paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # the child finds what this process finds
        environment = {**os.environ, "PYTHONPATH": paths}
        with writing(self.path), log.open("wb") as file:
            self._child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=environment)

    def _name_h5ad(self, new: Path, log: Path) -> None:
        assert self._child is not None
        with writing(self.path):
            if self._child.returncode != 0:
                reason = log.read_text().strip().splitlines()[-1:] or [f"code {self._child.returncode}"]
                raise OutputError(f"{self.path} cannot be written: {reason[0]}; make room, or write .zarr.")
            flush(new)
            check_output(self.path)  # it may have appeared in the meantime
            reach("predict.rename")
            new.rename(self.path)
            flush(self.path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _bytes_below(folder: Path) -> int:
    """Space that the files of a folder take; 0 where there is none."""
    n_blocks = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another job may be removing them
            n_blocks += path.lstat().st_blocks
    return 512 * n_blocks


def _tell(now: Progress, found: Progress, n_cells: int) -> str:
    """Where a prediction goes on."""
    if now.assembled:
        return "all cells are predicted, the rest is done"
    if now.turns == 0 and found.turns > 0:
        return f"begun on {found.n_ranks} ranks, all cells are predicted anew on {now.n_ranks}"
    return f"goes on after {min(now.turns * now.turn_cells * now.n_ranks, n_cells):,} of {n_cells:,} cells"


def _place_of(name: str) -> str:
    return f"{'layers' if name == DENOISED_KEY else 'obsm'}/{name}"


def _write(group: Any, name: str, value: Any) -> None:  # Any: a zarr group, and whatever AnnData can write
    from anndata.io import write_elem

    write_elem(group, name, value, dataset_kwargs={"shards": None})


def _is_running(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(LOOK_S)
    except subprocess.TimeoutExpired:
        return True
    return False
