"""Killed between the passes of a correction, resumed: the bits of a run that nobody disturbed, on any number of ranks."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from scamac_scale import IngestConfig, ingest
from scamac_scale.durable.differences import plain
from tests.support.donors import CORRECTED, build_donors
from tests.support.fingerprint import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nursery import Ended, Nursery

N_PASSES = 9
"""Three rounds of two passes and a correction."""
SMALL = {
    "sweep.SWEEP_CELLS": 32,
    "sweep.TICK_BATCHES": 2,
    "train.clusters.landmarks.SWEEP_CELLS": 32,
    "train.correction.fit.SWEEP_CELLS": 32,
}
ALWAYS = ("--train.checkpoint_every_s", "1e-6")


class Place(NamedTuple):
    """Where the runs of this module find what they share."""

    folder: Path
    store: Path
    jobs: Nursery

    def train(self, run: Path, *more: str, ranks: int = 1, **how: Any) -> Ended:
        options = ["--config", str(self.folder / "config.yaml"), "--store", str(self.store), "--quiet"]
        return self.jobs.run("train", "--run", str(run), *options, *more, ranks=ranks, constants=SMALL, **how)

    def kill(self, run: Path, nth: int, ranks: int = 1, *often: str) -> None:
        fault = f"train.correction:{nth}:kill"
        ended = self.train(run, "--resume", *often, ranks=ranks, fault=fault)
        assert f"fault: {fault}" in ended.errors, ended
        assert 0 not in ended.codes, ended

    def finish(self, run: Path, ranks: int = 1, fault: str = "") -> dict[str, str]:
        ended = self.train(run, "--resume", ranks=ranks, fault=fault)
        assert ended.codes == [0] * ranks, ended.errors
        return fingerprint(run, self.store)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, jobs: Nursery) -> Place:
    folder = tmp_path_factory.mktemp("kills")
    store = ingest(build_donors(), folder / "store.zarr", IngestConfig(n_genes=100))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(asdict(CORRECTED))))
    return Place(folder, store, jobs)


@pytest.fixture(scope="module")
def unbroken(place: Place) -> dict[str, str]:
    return place.finish(place.folder / "unbroken")


@pytest.mark.ddp
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_correction_that_is_killed_at_several_passes_ends_as_if_nothing_had_been(
    place: Place, unbroken: dict[str, str], tmp_path: Path, ranks: int
) -> None:
    run = tmp_path / "run"
    for nth in (1, 2, 4):  # each goes on after the last pass that was saved: 0, 1 and 4 are done
        place.kill(run, nth, ranks, *ALWAYS)
    # of the nine, four were done: a sixth is not passed any more
    assert place.finish(run, ranks, fault="train.correction:6:kill") == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("nth", [3, 8, N_PASSES])
def test_any_kind_of_pass_can_kill(place: Place, unbroken: dict[str, str], tmp_path: Path, nth: int) -> None:
    place.kill(tmp_path / "run", nth, 1, *ALWAYS)
    assert place.finish(tmp_path / "run") == unbroken


@pytest.mark.ddp
@pytest.mark.parametrize(("before", "after"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_another_number_of_ranks_takes_the_passes_anew(
    place: Place, unbroken: dict[str, str], tmp_path: Path, before: int, after: int
) -> None:
    run = tmp_path / "run"
    place.kill(run, 5, before, *ALWAYS)
    place.kill(run, N_PASSES, after)  # all nine: what another number of ranks had done is of no use
    assert place.finish(run, after) == unbroken


@pytest.mark.slow
def test_passes_that_were_not_saved_are_taken_again(place: Place, unbroken: dict[str, str], tmp_path: Path) -> None:
    place.kill(tmp_path / "run", 7)
    place.kill(tmp_path / "run", 7)
    assert place.finish(tmp_path / "run") == unbroken


@pytest.mark.ddp
@pytest.mark.slow
def test_a_signal_within_the_passes_stops_all_ranks(place: Place, unbroken: dict[str, str], tmp_path: Path) -> None:
    fault = "train.correction@1:5:term"
    ended = place.train(tmp_path / "run", ranks=2, fault=fault)
    assert ended.codes == [75, 75], ended.errors
    assert place.finish(tmp_path / "run", 2, fault="train.correction:5:kill") == unbroken  # four are left


@pytest.mark.slow
def test_components_in_files_leave_nothing_behind(place: Place, unbroken: dict[str, str], tmp_path: Path) -> None:
    run, constants = tmp_path / "run", {**SMALL, "train.correction.points.HELD_BYTES": 0}
    options = ("--config", str(place.folder / "config.yaml"), "--store", str(place.store), "--quiet", *ALWAYS)
    for fault in ("train.correction:3:kill", ""):
        ended = place.jobs.run("train", "--run", str(run), *options, "--resume", fault=fault, constants=constants)
        assert ended.codes == [-9 if fault else 0], ended.errors
        assert not list(run.glob("tmp*"))
    assert fingerprint(run, place.store) == unbroken
