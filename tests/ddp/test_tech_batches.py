"""A correction of technical batches on any number of processes: the bits of one, in the model and in what it predicts."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml

from scamac_scale import IngestConfig, ingest
from scamac_scale.durable.differences import plain
from tests.support.donors import CORRECTED, build_donors
from tests.support.fingerprint import fingerprint
from tests.support.prediction import digests

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nursery import Nursery

SMALL = {
    "sweep.SWEEP_CELLS": 16,  # every rank has some
    "sweep.TICK_BATCHES": 2,
    "train.clusters.landmarks.SWEEP_CELLS": 16,
    "train.correction.fit.SWEEP_CELLS": 16,
    "train.correction.points.PIECE_CELLS": 3,
    "infer.predict.EMBED_CELLS": 32,
}


class Place(NamedTuple):
    """Where the runs of this module find what they share."""

    folder: Path
    jobs: Nursery

    def run(self, *argv: str, ranks: int) -> None:
        ended = self.jobs.run(*argv, "--quiet", ranks=ranks, constants=SMALL)
        assert ended.codes == [0] * ranks, ended.errors

    def train(self, run: Path, key: str, ranks: int) -> dict[str, str]:
        file, store = run.with_suffix(".yaml"), self.folder / "store.zarr"
        config = replace(CORRECTED, batch_key=key)
        file.write_text(yaml.safe_dump(plain(asdict(config))))
        self.run("train", "--store", str(store), "--run", str(run), "--config", str(file), ranks=ranks)
        return fingerprint(run, store)

    def alone(self, key: str) -> Path:
        """The run of one process."""
        run = self.folder / f"alone-{key}"
        if not run.exists():
            self.train(run, key, 1)
        return run

    def predict(self, run: Path, out: Path, cells: str, ranks: int) -> dict[str, str]:
        argv = ("--input", str(self.folder / cells), "--out", str(out), "--denoised", "--denoised-batch", "mean")
        self.run("predict", "--run", str(run), *argv, ranks=ranks)
        return digests(out)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, jobs: Nursery) -> Place:
    folder = tmp_path_factory.mktemp("ranks")
    cells = build_donors()
    ingest(cells, folder / "store.zarr", IngestConfig(n_genes=100))
    cells.obs["donor"] = cells.obs["donor"].astype(str).replace({"bob": "dan", "cat": "eve"})
    cells.write_h5ad(folder / "new.h5ad")
    return Place(folder, jobs)


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("key", "sizes"), [("donor", (2,)), pytest.param("donor,chip", (2, 4), marks=pytest.mark.slow)]
)
def test_any_number_of_ranks_has_the_same_bits(place: Place, tmp_path: Path, key: str, sizes: tuple[int, ...]) -> None:
    alone = place.alone(key)
    for ranks in sizes:
        assert place.train(tmp_path / f"run-{ranks}", key, ranks) == fingerprint(alone, place.folder / "store.zarr")


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("key", "sizes"), [("donor", (1, 2)), pytest.param("donor,chip", (1, 2, 4), marks=pytest.mark.slow)]
)
def test_known_and_new_batches_are_predicted_with_the_same_bits(
    place: Place, tmp_path: Path, key: str, sizes: tuple[int, ...]
) -> None:
    run = place.alone(key)
    for cells in ("store.zarr", "new.h5ad"):
        found = [place.predict(run, tmp_path / f"{cells}-{ranks}.zarr", cells, ranks) for ranks in sizes]
        assert all(result == found[0] for result in found[1:])
