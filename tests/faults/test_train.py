"""Killed anywhere, resumed: the weights, labels and latents of a run that nobody disturbed."""

from __future__ import annotations

import random
import shutil
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import yaml

from scamac_scale import IngestConfig, ingest
from scamac_scale.durable.differences import plain
from tests.support.atlas import build_tiny_atlas
from tests.support.fingerprint import fingerprint
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nursery import Ended, Nursery

N_STEPS = 20
SMALL = {"sweep.SWEEP_CELLS": 32, "sweep.TICK_BATCHES": 2, "train.clusters.landmarks.SWEEP_CELLS": 32}
"""So that 300 cells are several turns of a sweep."""
OFTEN = ("--train.checkpoint_every_steps", "2")
ALWAYS = ("--train.checkpoint_every_s", "1e-6")

TRIPLES = [
    ("train.step:1:kill", "checkpoint.write:2:kill", "train.sweep:18:kill"),
    (f"train.step:{N_STEPS // 2}:kill", "checkpoint.prune:1:kill", "train.landmarks:3:kill"),
]
MORE_TRIPLES = [
    (OFTEN, 2, (f"train.step:{N_STEPS}:kill", "train.model:1:kill", "train.step:1:kill")),
    (ALWAYS, 1, ("checkpoint.rename:1:kill", "checkpoint.rename:3:kill", "checkpoint.write:1:kill")),
    (ALWAYS, 1, ("train.consensus:1:kill", "train.sweep:1:kill", "train.sweep:9:kill")),
    (OFTEN, 2, ("checkpoint.prune:2:kill", "checkpoint.prune:2:kill", "checkpoint.prune:2:kill")),
    (ALWAYS, 1, ("train.landmarks:1:kill", "train.landmarks:5:kill", "train.step:7:kill")),
    (OFTEN, 2, ("train.step:3:exit", "train.step:3:term", "train.step:3:exit")),
]


class Place(NamedTuple):
    """Where the runs of this module find what they share."""

    folder: Path
    store: Path
    jobs: Nursery

    def train(self, run: Path, *more: str, ranks: int = 1, **how: Any) -> Ended:
        options = ["--config", str(self.folder / "config.yaml"), "--store", str(self.store), "--quiet"]
        return self.jobs.run("train", "--run", str(run), *options, *more, ranks=ranks, constants=SMALL, **how)


@pytest.fixture(scope="module")
def place(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory, jobs: Nursery) -> Place:
    folder = tmp_path_factory.mktemp("kills")
    store = ingest(tiny_atlas, folder / "store.zarr", IngestConfig(n_genes=100))
    start = replace(QUICK.start, landmark_cells=80, components=(5,))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(asdict(replace(QUICK, start=start)))))
    return Place(folder, store, jobs)


@pytest.fixture(scope="module")
def unbroken(place: Place) -> dict[int, dict[str, str]]:
    found = {}
    for ranks in (1, 2):
        run = place.folder / f"unbroken-{ranks}"
        ended = place.train(run, ranks=ranks)
        assert ended.codes == [0] * ranks, ended.errors
        found[ranks] = fingerprint(run, place.store)
    return found


def finish(place: Place, run: Path, ranks: int) -> None:
    ended = place.train(run, "--resume", ranks=ranks)
    assert ended.codes == [0] * ranks, ended.errors


def kill_three_times(place: Place, run: Path, faults: tuple[str, ...], ranks: int, often: tuple[str, ...]) -> None:
    for fault in faults:
        ended = place.train(run, "--resume", *often, ranks=ranks, fault=fault)
        assert f"fault: {fault}" in ended.errors, (fault, ended)
        assert 0 not in ended.codes, ended
    finish(place, run, ranks)


@pytest.mark.ddp
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("faults", "often"), [(TRIPLES[0], OFTEN), pytest.param(TRIPLES[1], ALWAYS, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_as_if_nothing_had_been(
    place: Place,
    unbroken: dict[int, dict[str, str]],
    tmp_path: Path,
    faults: tuple[str, ...],
    often: tuple[str, ...],
    ranks: int,
) -> None:
    kill_three_times(place, tmp_path / "run", faults, ranks, often)
    assert fingerprint(tmp_path / "run", place.store) == unbroken[ranks]


@pytest.mark.slow
@pytest.mark.parametrize(("often", "ranks", "faults"), MORE_TRIPLES, ids=str)
def test_every_point_can_kill(
    place: Place,
    unbroken: dict[int, dict[str, str]],
    tmp_path: Path,
    faults: tuple[str, ...],
    often: tuple[str, ...],
    ranks: int,
) -> None:
    # the later faults may lie beyond what is left of the run: then it has ended
    for fault in faults:
        ended = place.train(tmp_path / "run", "--resume", *often, ranks=ranks, fault=fault)
        if f"fault: {fault}" not in ended.errors:
            assert fault != faults[0]
            assert ended.codes == [0] * ranks
    finish(place, tmp_path / "run", ranks)
    assert fingerprint(tmp_path / "run", place.store) == unbroken[ranks]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_any_time(place: Place, unbroken: dict[int, dict[str, str]], tmp_path: Path, seed: int) -> None:
    ranks = 1 + seed % 2
    rng = random.Random(seed)
    often = rng.choice([OFTEN, ALWAYS])
    n_kills, longest_s = 0, 1.6
    while n_kills < 3:
        run = tmp_path / "run"
        ended = place.train(run, "--resume", *often, ranks=ranks, kill_after_s=rng.uniform(0.1, longest_s))
        if ended.codes == [0] * ranks:  # too late for a machine as fast as this one: anew, and earlier
            shutil.rmtree(run)
            n_kills, longest_s = 0, longest_s / 1.5
        else:
            n_kills += 1
    finish(place, tmp_path / "run", ranks)
    assert fingerprint(tmp_path / "run", place.store) == unbroken[ranks]


@pytest.mark.ddp
def test_a_rank_that_dies_is_named_by_the_others(place: Place, tmp_path: Path) -> None:
    ended = place.train(tmp_path / "run", ranks=2, fault="train.step@1:5:kill")
    assert "fault: train.step@1:5:kill" in ended.errors
    assert ended.codes == [75, -9]
    assert "rank 1 of 2 does not answer" in ended.errors


@pytest.fixture(scope="module")
def stopped(place: Place) -> Path:
    """A run that was killed at step 15; to be copied."""
    run = place.folder / "stopped"
    ended = place.train(run, *OFTEN, fault="train.step:15:kill")
    assert "fault: train.step:15:kill" in ended.errors
    return run


def stopped_run(stopped: Path, run: Path) -> list[Path]:
    """The checkpoints of a copy of that run."""
    shutil.copytree(stopped, run)
    files = sorted((run / "checkpoints").glob("*.pt"))
    assert len(files) == 2
    return files


@pytest.mark.parametrize(
    "damage", ["flip", pytest.param("cut", marks=pytest.mark.slow), pytest.param("empty", marks=pytest.mark.slow)]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    place: Place, unbroken: dict[int, dict[str, str]], stopped: Path, tmp_path: Path, damage: str
) -> None:
    newest = stopped_run(stopped, tmp_path / "run")[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"flip": content, "cut": content[: len(content) // 3], "empty": b""}[damage])
    ended = place.train(tmp_path / "run", "--resume")
    assert ended.codes == [0]
    assert f"{newest} cannot be used" in ended.errors
    assert fingerprint(tmp_path / "run", place.store) == unbroken[1]


def test_a_signal_stops_a_run_that_can_go_on(place: Place, unbroken: dict[int, dict[str, str]], tmp_path: Path) -> None:
    ended = place.train(tmp_path / "run", fault="train.step:13:term")
    assert ended.codes == [75]
    assert "stopped by SIGTERM; a checkpoint is saved" in ended.errors
    assert [path.name.split("-")[2] for path in sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))][-1] == "13"
    finish(place, tmp_path / "run", 1)
    assert fingerprint(tmp_path / "run", place.store) == unbroken[1]


@pytest.mark.ddp
def test_a_signal_to_one_rank_stops_all(place: Place, unbroken: dict[int, dict[str, str]], tmp_path: Path) -> None:
    for fault in ("train.step@1:4:term", "train.sweep@1:20:term"):
        ended = place.train(tmp_path / "run", "--resume", ranks=2, fault=fault)
        assert ended.codes == [75, 75], ended.errors
    finish(place, tmp_path / "run", 2)
    assert fingerprint(tmp_path / "run", place.store) == unbroken[2]


@pytest.mark.ddp
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_loss_that_is_no_number_stops_all_ranks(place: Place, tmp_path: Path, ranks: int) -> None:
    fault = f"train.loss@{ranks - 1}:13:nan"
    ended = place.train(tmp_path / "run", *OFTEN, ranks=ranks, fault=fault)
    assert f"fault: {fault}" in ended.errors
    assert ended.codes == [5] * ranks
    assert f"not finite at step 12, on rank {ranks - 1}, cells " in ended.errors
    assert "step-12-" in sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))[-1].name
    assert (tmp_path / "run" / "nonfinite-step-12.json").is_file()


@pytest.mark.slow
def test_a_failed_save_keeps_the_checkpoints_before(
    place: Place, unbroken: dict[int, dict[str, str]], tmp_path: Path
) -> None:
    for point in ("write", "rename"):
        ended = place.train(tmp_path / "run", "--resume", *OFTEN, fault=f"checkpoint.{point}:4:enospc")
        assert ended.codes == [4]
        assert "No space left on device" in ended.errors
        assert len(list((tmp_path / "run" / "checkpoints").glob("*.pt"))) == 2
    finish(place, tmp_path / "run", 1)
    assert fingerprint(tmp_path / "run", place.store) == unbroken[1]


def test_no_room_is_found_out_before_the_steps(place: Place, tmp_path: Path) -> None:
    ended = place.train(tmp_path / "run", limit_bytes=20_000)
    assert ended.codes == [4]
    assert "File too large" in ended.errors
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_has_no_gap_in_its_metrics_and_lets_files_of_others_be(
    place: Place, unbroken: dict[int, dict[str, str]], stopped: Path, tmp_path: Path
) -> None:
    def steps(run: Path) -> list[str]:
        lines = (run / "metrics.csv").read_text().splitlines()
        at = lines[0].split(",").index("step")
        return [line.split(",")[at] for line in lines[1:]]

    run = tmp_path / "run"
    stopped_run(stopped, run)
    for name in (".nfs000000000123", "slurm-12.out"):  # files of others do not keep a run from going on
        (run / name).write_text("not ours")
    finish(place, run, 1)
    assert steps(run) == steps(place.folder / "unbroken-1")
    assert fingerprint(run, place.store) == unbroken[1]
    for name in (".nfs000000000123", "slurm-12.out"):
        assert (run / name).read_text() == "not ours"


@pytest.mark.slow
def test_another_setting_or_other_cells_are_refused(place: Place, stopped: Path, tmp_path: Path) -> None:
    stopped_run(stopped, tmp_path / "run")
    ended = place.train(tmp_path / "run", "--resume", "--loss.gamma", "0.2")
    assert ended.codes == [2]
    assert "loss.gamma=0.2 (it was 0.1)" in ended.errors
    other = ingest(build_tiny_atlas()[:250].copy(), tmp_path / "other.zarr", IngestConfig(n_genes=100))
    ended = place.jobs.run("train", "--run", str(tmp_path / "run"), "--store", str(other), "--resume", "--quiet")
    assert ended.codes == [2]
    assert "other cells or genes" in ended.errors
    permuted = build_tiny_atlas()[np.random.default_rng(0).permutation(300)].copy()
    store = ingest(permuted, tmp_path / "permuted.zarr", IngestConfig(n_genes=100))
    ended = place.jobs.run("train", "--run", str(tmp_path / "run"), "--store", str(store), "--resume", "--quiet")
    assert ended.codes == [2]
    assert "other cells or genes" in ended.errors
    ended = place.train(tmp_path / "run")
    assert ended.codes == [4]
    assert "add --resume" in ended.errors


@pytest.mark.ddp
@pytest.mark.slow
def test_ranks_with_other_settings_or_other_cells_are_refused(place: Place, tmp_path: Path) -> None:
    other = ingest(build_tiny_atlas(), tmp_path / "other.zarr", IngestConfig(n_genes=100, seed=1))
    for options, what in [
        (("--seed", "7"), "setting than rank 0 (seed=7, there 0)"),
        (("--run", str(tmp_path / "elsewhere")), "run folder than rank 0"),
        (("--store", str(other)), "input than rank 0"),
    ]:
        ended = place.train(tmp_path / "run", ranks=2, rank_1=options)
        assert ended.codes == [2, 2], ended
        assert f"rank 1 has another {what}" in ended.errors
        assert not (tmp_path / "run").exists()


@pytest.mark.ddp
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_while_the_model_is_written_loses_nothing(
    place: Place, unbroken: dict[int, dict[str, str]], tmp_path: Path, rank: int
) -> None:
    ended = place.train(tmp_path / "run", ranks=2, fault=f"train.model@{rank}:1:term")
    assert f"fault: train.model@{rank}:1:term" in ended.errors
    assert ended.codes == [0, 0], ended.errors
    assert fingerprint(tmp_path / "run", place.store) == unbroken[2]
