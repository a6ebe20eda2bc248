"""An ingest that is killed anywhere and resumed ends in the same bytes; one that cannot write leaves nothing wrong."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from errno import EACCES, EIO, ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scamac_scale.config import IngestConfig
from scamac_scale.durable.locks import lock, lock_file
from scamac_scale.errors import OutputError
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.store.reader import StoreReader
from tests.support.failing import contents, failures
from tests.support.stores import counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.nursery import Ended, Nursery

OPTIONS = ("--ingest.n_genes", "100", "--ingest.block_cells", "20", "--ingest.shuffle_bytes", "9000", "--quiet")
"""15 blocks, 8 buckets, and a note after every third time that rows are dealt."""
SMALL = {"store.layout.CHUNK_VALUES": 64, "store.layout.SHARD_VALUES": 256, "store.writer.DURABLE_BYTES": 1500}
"""So that the 10,000 values of the tiny atlas are many shards."""
LATEST = {"read": 12, "deal": 4, "note": 4, "shard": 20, "commit": 1, "rename": 1}
"""Passages of each point that come about in every order and however often it was killed before."""


class Place(NamedTuple):
    """Where the ingests of this module find what they share."""

    atlas: Path
    jobs: Nursery

    def ingest(self, out: Path, *more: str, **how: Any) -> Ended:
        return self.jobs.run("ingest", str(self.atlas), "--out", str(out), *OPTIONS, *more, constants=SMALL, **how)


@pytest.fixture(scope="module")
def place(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory, jobs: Nursery) -> Place:
    return Place(tiny_atlas, jobs)


WAYS = {"shuffled": (), "kept": ("--ingest.shuffle", "false"), "small": ("--ingest.profile", "small")}


@pytest.fixture(scope="module")
def whole(place: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What an ingest that nobody stops writes, in each of the `WAYS`."""
    found = {}
    for way, options in WAYS.items():
        out = tmp_path_factory.mktemp("whole") / "a.zarr"
        assert place.ingest(out, *options).codes == [0]
        found[way] = contents(out)
        assert sum(name.startswith("X/data/c/") for name in found[way]) > 30
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def go_through(place: Place, out: Path, way: str, points: list[tuple[str, int]]) -> None:
    """Kill an ingest at one passage after the other, each time in a new process that goes on, and let it end."""
    for point, nth in points:
        fault = f"ingest.{point}:{nth}:kill"
        done = place.ingest(out, *WAYS[way], "--resume", fault=fault)
        assert done.codes == [-signal.SIGKILL], done.errors
        assert done.errors.splitlines()[-1] == f"fault: {fault}"
        assert not out.exists()
    done = place.ingest(out, *WAYS[way], "--resume")
    assert done.codes == [0], done.errors


@pytest.mark.parametrize(
    ("way", "points"),
    [
        ("shuffled", [("read", 20), ("note", 3), ("shard", 20)]),
        ("kept", [("shard", 50), ("commit", 1), ("rename", 1)]),
        ("small", [("read", 20), ("shard", 50), ("rename", 1)]),
    ],
)
@pytest.mark.slow
def test_a_killed_ingest_goes_on_to_the_same_bytes(
    place: Place, tmp_path: Path, whole: dict[str, dict[str, str]], way: str, points: list[tuple[str, int]]
) -> None:
    go_through(place, tmp_path / "a.zarr", way, points)
    assert contents(tmp_path / "a.zarr") == whole[way]
    assert names(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("first", [1, *(pytest.param(first, marks=pytest.mark.slow) for first in (2, 5))])
def test_an_ingest_killed_while_it_deals_goes_on_to_the_same_bytes(
    place: Place, tmp_path: Path, whole: dict[str, dict[str, str]], first: int
) -> None:
    """Before the first note, right after it, and later; then once more from where that left it."""
    go_through(place, tmp_path / "a.zarr", "shuffled", [("deal", first), ("deal", 1), ("deal", 2)])
    assert contents(tmp_path / "a.zarr") == whole["shuffled"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_an_ingest_killed_at_any_three_points_goes_on_to_the_same_bytes(
    place: Place, tmp_path: Path, whole: dict[str, dict[str, str]], seed: int
) -> None:
    rng = random.Random(seed)
    way = rng.choice(list(WAYS))
    order = [point for point in LATEST if way != "kept" or point != "deal"]
    points = sorted(order.index(rng.choice(order)) for _ in range(3))
    go_through(place, tmp_path / "a.zarr", way, [(order[at], rng.randint(1, LATEST[order[at]])) for at in points])
    assert contents(tmp_path / "a.zarr") == whole[way]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_an_ingest_killed_at_random_times_goes_on_to_the_same_bytes(
    place: Place, tmp_path: Path, whole: dict[str, dict[str, str]], seed: int
) -> None:
    rng, out, n_kills = random.Random(seed), tmp_path / "a.zarr", 0
    way = rng.choice(list(WAYS))
    start_s = time.monotonic()
    assert place.ingest(tmp_path / "b.zarr", *WAYS[way]).codes == [0]
    most_s = time.monotonic() - start_s
    while n_kills < 3:
        (code,) = place.ingest(out, *WAYS[way], "--resume", kill_after_s=rng.uniform(0.02, 1) * most_s).codes
        assert code in (0, -signal.SIGKILL)
        n_kills += code != 0
        if out.exists():  # it came to its end, or was killed right after
            assert contents(out) == whole[way]
            shutil.rmtree(out)
            most_s /= 2
    assert place.ingest(out, *WAYS[way], "--resume").codes == [0]
    assert contents(out) == whole[way]
    assert names(tmp_path) == ["a.zarr", "b.zarr"]


def test_a_signal_keeps_what_is_done_and_says_how_to_go_on(
    place: Place, tmp_path: Path, whole: dict[str, dict[str, str]]
) -> None:
    out = tmp_path / "a.zarr"
    done = place.ingest(out, fault="ingest.deal:5:term")
    assert done.codes == [75]
    assert "fault: ingest.deal:5:term" in done.errors
    assert done.errors.endswith("error: stopped by a signal; what is done is kept, run again with --resume.\n")
    assert names(tmp_path) == [".a.zarr.partial"]
    assert place.ingest(out, "--resume", fault="ingest.read:30:kill").codes == [0]  # two passes are not repeated
    assert contents(out) == whole["shuffled"]


@pytest.mark.slow
def test_shards_that_are_not_as_they_were_left_are_refused(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    assert place.ingest(out, fault="ingest.shard:50:kill").codes == [-signal.SIGKILL]
    for name in ("lengths", "indices/c/3", "data/c/0"):
        shard = tmp_path / ".a.zarr.partial" / name
        shard.rename(tmp_path / "away")
        done = place.ingest(out, "--resume")
        assert done.codes == [2], name
        assert "is not as it was left; run again without resume, which begins anew." in done.errors
        assert not out.exists()
        (tmp_path / "away").rename(shard)


def test_a_second_ingest_is_refused_and_told_of_the_first(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    with lock(lock_file(out), out):
        done = place.ingest(out, "--resume")
    assert done.codes == [75]
    assert (
        f"a.zarr is being written by another job: host {socket.gethostname()}, pid {os.getpid()}, since" in done.errors
    )
    assert names(tmp_path) == []


@pytest.mark.slow
def test_the_store_that_was_to_be_replaced_stays_until_the_end(
    place: Place, tmp_path: Path, whole: dict[str, dict[str, str]]
) -> None:
    out = ingest(place.atlas, tmp_path / "a.zarr", IngestConfig(n_genes=30))
    before = contents(out)
    for point in ("ingest.deal", "ingest.rename"):
        done = place.ingest(out, "--overwrite", "--resume", fault=f"{point}:1:kill")
        assert f"fault: {point}:1:kill" in done.errors
        assert contents(out) == before
    assert place.ingest(out, "--overwrite", "--resume").codes == [0]
    assert contents(out) == whole["shuffled"]
    assert names(tmp_path) == ["a.zarr"]


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas whose ingest makes few calls."""
    path = tmp_path_factory.mktemp("little") / "a.h5ad"
    cells = pd.DataFrame(index=[f"cell{i}" for i in range(40)])
    ad.AnnData(counts(40, 12).astype(np.float32), obs=cells).write_h5ad(path)
    return path


LITTLE = IngestConfig(min_cell_fraction=0.0, block_cells=10, shuffle_bytes=1000)


def check_failures(atlas: Path, folder: Path, number: int, *, step: int, is_lasting: bool, is_old_there: bool) -> int:
    """Let the nth call fail for every nth: no store, the old one, or the right one, and nothing beside it."""
    right = contents(ingest(atlas, folder.parent / "right.zarr", LITTLE))
    folder.mkdir()
    out = folder / "a.zarr"

    def prepare() -> dict[str, str]:
        shutil.rmtree(out, ignore_errors=True)
        return contents(ingest(atlas, out, IngestConfig(min_cell_fraction=0.0, n_genes=5))) if is_old_there else {}

    old, n_failures = prepare(), 0
    for state, error in failures(
        lambda: ingest(atlas, out, LITTLE, overwrite=is_old_there), folder, number, step=step, is_lasting=is_lasting
    ):
        n_failures += 1
        where = f"{state.failed}: {error!r}"
        assert error is None or isinstance(error, OutputError), where
        found = contents(out) if out.exists() else {}
        assert found == right or (error is not None and found == old), where
        assert set(names(folder)) <= {"a.zarr"}, where
        if found:
            StoreReader(out).close()
        if found != old:
            prepare()
    assert contents(out) == right
    return n_failures


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: these tests flush a hundred thousand times."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.mark.parametrize(("number", "is_old_there"), [(ENOSPC, False), (EIO, True)])
@pytest.mark.slow
def test_an_ingest_that_cannot_write_leaves_nothing_wrong(
    little: Path, memory_folder: Path, number: int, is_old_there: bool
) -> None:
    folder = memory_folder / "out"
    assert check_failures(little, folder, number, step=97, is_lasting=False, is_old_there=is_old_there) > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "is_old_there", "is_lasting", "step"),
    [
        (ENOSPC, True, False, 7),
        (EACCES, False, False, 13),
        (EIO, True, True, 17),
        (ENOSPC, False, True, 23),
    ],
)
def test_an_ingest_in_which_any_call_fails_leaves_nothing_wrong(
    little: Path, memory_folder: Path, number: int, is_old_there: bool, is_lasting: bool, step: int
) -> None:
    folder = memory_folder / "out"
    n_failures = check_failures(little, folder, number, step=step, is_lasting=is_lasting, is_old_there=is_old_there)
    assert n_failures > 400 / step


def test_a_limit_on_file_sizes_is_exit_code_4(place: Place, tmp_path: Path) -> None:
    done = place.ingest(tmp_path / "a.zarr", limit_bytes=6000)
    assert done.codes == [4], done.errors
    assert "a.zarr cannot be written: File too large; the file system or a limit allows no larger files" in done.errors
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_exit_code_4_and_leaves_room(
    place: Place, small_disk: Path, whole: dict[str, dict[str, str]]
) -> None:
    (small_disk / "filler").write_bytes(bytes(16 * 2**20 - 150_000))
    done = place.ingest(small_disk / "a.zarr")
    assert done.codes == [4], done.errors
    assert "a.zarr cannot be written: No space left on device; free some space or choose another disk" in done.errors
    assert names(small_disk) == ["filler"]
    (small_disk / "filler").unlink()
    assert place.ingest(small_disk / "a.zarr", "--resume").codes == [0]
    assert contents(small_disk / "a.zarr") == whole["shuffled"]
