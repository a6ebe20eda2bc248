"""Killed anywhere, resumed: the arrays of a prediction that nobody disturbed. Whatever cannot be written leaves nothing to read."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from scamac_scale.durable import atomic
from scamac_scale.durable.atomic import partial_folder
from scamac_scale.durable.differences import plain
from scamac_scale.errors import OutputError, StoppedError
from scamac_scale.fitted import save_model
from scamac_scale.infer.output import disk
from scamac_scale.infer.output.h5ad import Conversion
from scamac_scale.infer.output.rows import PredictedRows
from tests.support.failing import failures
from tests.support.prediction import N_BLOCKS, digests, look_often, make_stores, model_of, run_predict, tree_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.nursery import Ended, Nursery

SMALL = {
    "sweep.TICK_BATCHES": 1,
    "infer.output.disk.TICK_BATCHES": 1,
    "infer.predict.TICK_BATCHES": 1,
    "infer.output.disk.JOURNAL_S": 0,
    "infer.output.table.CHUNK_CELLS": 512,
}
TORCHRUN = Path(sys.executable).with_name("torchrun")
TRIPLES = {
    1: [
        ("predict.block:2:kill", "predict.block:3:kill", "predict.rename:1:kill"),
        ("predict.rename:1:kill", "predict.rename:1:kill", "predict.rename:1:kill"),
        ("predict.block:1:kill", f"predict.block:{N_BLOCKS}:kill", "predict.block:1:kill"),
    ],
    2: [
        ("predict.block@1:2:kill", "predict.block@0:1:kill", "predict.rename:1:kill"),
        ("predict.block@0:3:kill", "predict.block:1:kill", "predict.rename:1:kill"),
    ],
}


class Place(NamedTuple):
    """Where the runs of this module find what they share."""

    folder: Path
    jobs: Nursery

    def command(self, out: Path, *more: str, store: str = "shuffled") -> list[str]:
        inputs = ("--run", str(self.folder / "run"), "--input", str(self.folder / f"{store}.zarr"))
        return ["predict", *inputs, "--out", str(out), "--denoised", *more]

    def predict(self, out: Path, *more: str, ranks: int = 1, fault: str = "", **how: Any) -> Ended:
        ended = self.jobs.run(*self.command(out, *more), ranks=ranks, fault=fault, constants=SMALL, **how)
        assert not fault or f"fault: {fault}" in ended.errors, ended
        return ended

    def finish(self, out: Path, ranks: int = 1) -> None:
        ended = self.predict(out, "--resume", ranks=ranks)
        assert ended.codes == [0] * ranks, ended.errors
        assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, jobs: Nursery) -> Place:
    folder = make_stores(tmp_path_factory.mktemp("kills"))
    (folder / "run").mkdir()
    model = model_of(folder / "shuffled.zarr")
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(plain(asdict(model.config))))  # as a run has it
    save_model(model, folder / "run" / "model")
    return Place(folder, jobs)


@pytest.fixture(scope="module")
def unbroken(place: Place) -> dict[str, Any]:
    """What a run leaves that nobody disturbs, on one rank."""
    (place.folder / "unbroken").mkdir()
    ended = place.predict(place.folder / "unbroken" / "out.zarr")
    assert ended.codes == [0], ended.errors
    found = place.folder / "unbroken" / "out.zarr"
    return {"tree": tree_digest(found), "arrays": digests(found)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "out.zarr"


def kill_three_times(place: Place, out: Path, faults: tuple[str, ...], ranks: int) -> None:
    for fault in faults:
        ended = place.predict(out, "--resume", ranks=ranks, fault=fault)
        assert -9 in ended.codes, ended
        assert set(ended.codes) <= {-9, 75}, ended
        assert not out.exists()
    place.finish(out, ranks)


@pytest.mark.ddp
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_prediction_that_is_killed_three_times_ends_as_if_nothing_had_been(
    place: Place, unbroken: dict[str, Any], out: Path, ranks: int
) -> None:
    kill_three_times(place, out, TRIPLES[ranks][0], ranks)
    assert tree_digest(out) == unbroken["tree"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "faults"), [(ranks, faults) for ranks, triples in TRIPLES.items() for faults in triples[1:]]
)
def test_every_point_can_kill(
    place: Place, unbroken: dict[str, Any], out: Path, ranks: int, faults: tuple[str, ...]
) -> None:
    kill_three_times(place, out, faults, ranks)
    assert tree_digest(out) == unbroken["tree"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_an_h5ad_can_be_killed_too(place: Place, out: Path, ranks: int) -> None:
    expected, out = out.with_name("expected.h5ad"), out.with_suffix(".h5ad")
    assert place.predict(expected).codes == [0]
    before = digests(expected)
    expected.unlink()
    kill_three_times(place, out, TRIPLES[ranks][0], ranks)
    assert digests(out) == before


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_time(place: Place, unbroken: dict[str, Any], out: Path, seed: int, ranks: int) -> None:
    rng = random.Random(seed)
    n_kills, most_s = 0, 1.5
    for _ in range(20):
        ended = place.predict(out, "--resume", ranks=ranks, kill_after_s=rng.uniform(0.02, most_s))
        if ended.codes == [0] * ranks:  # it was done before: anew, and killed sooner
            shutil.rmtree(out)
            most_s /= 2
            continue
        n_kills += 1
        if n_kills == 3:
            break
    assert n_kills > 0
    place.finish(out, ranks)
    assert tree_digest(out) == unbroken["tree"]


@pytest.mark.slow
@pytest.mark.ddp
def test_another_number_of_ranks_begins_anew(place: Place, unbroken: dict[str, Any], out: Path) -> None:
    assert place.predict(out, fault="predict.block:4:kill").codes == [-9]
    place.finish(out, ranks=2)
    assert tree_digest(out) == unbroken["tree"]


@pytest.mark.slow
def test_without_resume_it_begins_anew(place: Place, unbroken: dict[str, Any], out: Path) -> None:
    assert place.predict(out, fault="predict.block:4:kill").codes == [-9]
    ended = place.jobs.run(*place.command(out), fault=f"predict.block:{N_BLOCKS}:kill", constants=SMALL)
    assert ended.codes == [-9]
    place.finish(out)
    assert tree_digest(out) == unbroken["tree"]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.ddp)])
@pytest.mark.slow
def test_a_signal_stops_a_prediction_that_can_go_on(
    place: Place, unbroken: dict[str, Any], out: Path, ranks: int
) -> None:
    ended = place.predict(out, ranks=ranks, fault=f"predict.block@{ranks - 1}:2:term")
    assert ended.codes == [75] * ranks, ended.errors
    assert "stopped by SIGTERM; what was predicted is kept, run again with --resume" in ended.errors
    assert [path.name for path in out.parent.iterdir()] == [partial_folder(out).name]
    place.finish(out, ranks)
    assert tree_digest(out) == unbroken["tree"]


@pytest.mark.parametrize(
    ("suffix", "target"),
    [(".zarr", PredictedRows.read), pytest.param(".h5ad", Conversion.is_running, marks=pytest.mark.slow)],
)
def test_a_signal_is_heard_after_the_last_block(
    place: Place, out: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, target: Callable[..., Any]
) -> None:
    out, store = out.with_suffix(suffix), place.folder / "ordered.zarr"
    expected = digests(run_predict(store, out.with_name(f"expected{suffix}")))
    look_often(monkeypatch.setattr, every_s=30.0)
    owner = PredictedRows if suffix == ".zarr" else Conversion

    def told(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return target(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, target.__name__, told)
        with pytest.raises(StoppedError, match="stopped by SIGTERM"):
            run_predict(store, out)
    assert not out.exists()
    points: list[str] = []
    monkeypatch.setattr(disk, "reach", points.append)
    run_predict(store, out, resume=True)
    assert "predict.block" not in points
    assert digests(out) == expected
    assert not partial_folder(out).exists()


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("ranks", "point"),
    [
        (2, "block"),
        (1, "rename"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, "block"), (2, "rename"))),
    ],
)
def test_an_error_of_one_rank_ends_all_and_leaves_nothing(place: Place, out: Path, ranks: int, point: str) -> None:
    rank = 0 if point == "rename" else ranks - 1
    ended = place.predict(out, ranks=ranks, fault=f"predict.{point}@{rank}:1:enospc")
    assert ended.codes == [4] * ranks, ended.errors
    assert "No space left on device; free some space" in ended.errors
    assert list(out.parent.iterdir()) == []


def test_a_limit_of_the_file_size_is_said(place: Place, out: Path) -> None:
    ended = place.predict(out, limit_bytes=100_000)
    assert ended.codes == [4], ended.errors
    assert "File too large" in ended.errors
    assert list(out.parent.iterdir()) == []


def test_other_work_is_refused_and_what_is_in_the_journal_is_not_done_again(
    place: Place, unbroken: dict[str, Any], out: Path
) -> None:
    assert place.predict(out, fault="predict.block:4:kill").codes == [-9]
    other = place.command(out, "--resume", store="ordered")
    for argv, reason in [
        (place.command(out, "--resume", "--attention", "atlas"), "attention='atlas' (it was 'trained')"),
        ([each for each in other if each != "--denoised"], "another input, denoised=False (it was True)"),
    ]:
        ended = place.jobs.run(*argv, constants=SMALL)
        assert ended.codes == [2], ended.errors
        assert reason in ended.errors
    ended = place.jobs.run(*place.command(out, "--resume"), fault=f"predict.block:{N_BLOCKS - 2}:kill", constants=SMALL)
    assert ended.codes == [0], ended.errors  # three blocks were left
    assert "goes on after 3,072 of 5,500 cells" in ended.errors
    assert tree_digest(out) == unbroken["tree"]


@pytest.mark.parametrize("suffix", [".zarr", pytest.param(".h5ad", marks=pytest.mark.slow)])
def test_a_finished_prediction_is_left_as_it_is(place: Place, out: Path, suffix: str) -> None:
    out = out.with_suffix(suffix)
    place.finish(out)  # nothing was there: it starts
    before = digests(out)
    partial_folder(out).mkdir()  # of a process that was killed after its last step
    ended = place.predict(out, "--resume")
    assert ended.codes == [0], ended.errors
    assert "is finished; there is nothing to resume" in ended.errors
    ended = place.predict(out, "--resume", "--attention", "atlas")
    assert ended.codes == [2]
    assert "attention='atlas' (it was 'trained')" in ended.errors
    ended = place.predict(out, "--resume", "--input", str(place.folder / "ordered.zarr"))
    assert ended.codes == [2]
    assert "another input" in ended.errors
    assert place.predict(out).codes == [4]
    assert digests(out) == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


MORE_CASES = [(errno.EIO, False, 13), (errno.EACCES, False, 43), (errno.ENOSPC, True, 17)]
"""Error, whether all later calls fail, too, and calls between two that are tried, of some 850. Those of the last step are all tried in
`tests/durable/test_atomic.py`."""


@pytest.mark.parametrize(
    "case", [(errno.ENOSPC, False, 83), *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)], ids=str
)
@pytest.mark.slow
def test_no_write_that_fails_leaves_a_result(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[int, bool, int]
) -> None:
    number, is_lasting, step = case
    look_often(monkeypatch.setattr)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the disk need not be waited for some thousand times
    monkeypatch.setattr(atomic, "_REMOVE_WAIT_S", 0.005)
    store = make_stores(tmp_path / "few", 1200) / "ordered.zarr"
    expected = digests(run_predict(store, tmp_path / "expected.zarr"))
    n_failures = 0
    for state, error in failures(lambda: run_predict(store, out), out.parent, number, step=step, is_lasting=is_lasting):
        if error is None:  # it found another way
            assert digests(out) == expected, state.failed
        else:
            n_failures += 1
            assert isinstance(error, OutputError), (state.failed, error)
            assert error.exit_code == 4
            assert not out.exists(), state.failed
            assert list(out.parent.iterdir()) == [], state.failed
        shutil.rmtree(out.parent)
        out.parent.mkdir()
    assert n_failures > 500 // step
    assert digests(out) == expected


FIT_AND_PREDICT = """
import sys
from dataclasses import replace
from scamac_scale import ScAMAC
from tests.support.settings import QUICK
store, folder = sys.argv[1:]
model = ScAMAC(config=replace(QUICK, n_clusters=3)).fit(store, run=f"{folder}/run")
for name in ("first.zarr", "second.zarr"):
    model.predict(store, f"{folder}/{name}")
"""


@pytest.mark.slow
@pytest.mark.ddp
def test_a_script_may_fit_and_predict_on_the_same_ranks(place: Place, out: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FIT_AND_PREDICT)
    command = [TORCHRUN, "--nproc-per-node", "2", script, place.folder / "shuffled.zarr", out.parent]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert tree_digest(out.with_name("first.zarr")) == tree_digest(out.with_name("second.zarr"))


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize(
    "launcher",
    [[TORCHRUN, "--nproc-per-node", "2", "-m", "--", "scamac_scale"], [sys.executable, "-m", "scamac_scale"]],
)
def test_a_launcher_that_lost_a_rank_can_start_again(
    place: Place, unbroken: dict[str, Any], out: Path, launcher: list[str]
) -> None:
    devices = [] if launcher[0] == TORCHRUN else ["--devices", "2"]
    command = [*map(str, launcher), *place.command(out, "--resume", *devices)]

    def run(fault: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SCAMAC_FAULT": fault}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    for fault in ("predict.block@1:2:kill", "predict.block@0:2:term", "predict.rename:1:kill"):
        done = run(fault)
        assert f"fault: {fault}" in done.stderr, done.stderr
        assert done.returncode != 0
        assert devices == [] or done.returncode == 75, done.stderr
        assert not out.exists()
    done = run("")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("clusters, latents and memberships") == 1  # one rank speaks
    assert digests(out) == unbroken["arrays"]
