"""The same run on any number of processes: to the last bit where gradients are summed by fixed blocks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from scamac_scale import IngestConfig, ingest, simulate
from scamac_scale.config import ModelConfig, PhaseConfig, ScamacConfig, StartConfig, TrainConfig
from scamac_scale.durable.differences import plain
from scamac_scale.metrics.clustering import clustering_scores
from tests.support.fingerprint import fingerprint

if TYPE_CHECKING:
    from tests.support.nursery import Nursery

TERMS = ("reconstruction", "layers", "similarity", "clustering")
CONFIG = ScamacConfig(
    n_clusters=5,
    model=ModelConfig(encoder_width=32, latent_width=8, bank_cells=32),
    start=StartConfig(landmark_cells=100, components=(5, 8)),
    train=TrainConfig(
        batch_cells=256,  # four blocks
        pretrain=PhaseConfig(epochs=3),
        rounds=2,
        phases=(PhaseConfig(terms=TERMS, epochs=2, schedule="cosine"),),
        accelerator="cpu",
    ),
)
SMALL = {"sweep.SWEEP_CELLS": 64, "sweep.TICK_BATCHES": 2, "train.clusters.landmarks.SWEEP_CELLS": 64}


class Place(NamedTuple):
    """Where the runs of this module find what they share."""

    folder: Path
    store: Path
    jobs: Nursery

    def options(self, run: Path, config: ScamacConfig) -> list[str]:
        file = run.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(plain(asdict(config))))
        return ["train", "--store", str(self.store), "--run", str(run), "--config", str(file), "--quiet"]

    def train(self, run: Path, config: ScamacConfig, ranks: int) -> dict[str, str]:
        ended = self.jobs.run(*self.options(run, config), ranks=ranks, constants=SMALL)
        assert ended.codes == [0] * ranks, ended.errors
        return fingerprint(run, self.store)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, jobs: Nursery) -> Place:
    folder = tmp_path_factory.mktemp("ranks")
    atlas = simulate(folder / "atlas.zarr", 1111, n_genes=120, n_types=5)
    store = ingest(atlas, folder / "store.zarr", IngestConfig(n_genes=60))
    return Place(folder, store, jobs)


def changed(**parts: dict[str, Any]) -> ScamacConfig:
    return replace(CONFIG, **{name: replace(getattr(CONFIG, name), **values) for name, values in parts.items()})


@pytest.fixture(scope="module")
def alone(place: Place) -> dict[str, str]:
    """What one process comes to."""
    return place.train(place.folder / "alone", CONFIG, 1)


@pytest.mark.ddp
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks_has_the_same_bits(place: Place, alone: dict[str, str], tmp_path: Path, ranks: int) -> None:
    assert place.train(tmp_path / "run", CONFIG, ranks) == alone


PAPER = {
    "model": {"spatial_form": "batch", "channel_form": "batch", "fusion": "gated_sum"},
    "loss": {"similarity": "batch", "similarity_target": "membership", "clustering": "sum", "clustering_weight": 1e-4},
    "start": {"weights": "identity", "centers": "kmeans"},
    "train": {"carries_centers": True},
}
OTHERS = {
    "as the paper has it": PAPER,
    "pairs within the batch": {"loss": {"similarity": "batch", "similarity_form": "gram"}},
    "sums taken anew": {"loss": {"similarity_refresh_steps": 3, "similarity_target": "membership"}},
    "counts held out": {"loss": {"reconstruction": "poisson"}},
    "balanced classes": {"loader": {"balance_by": "cell_type"}},
    "streamed": {"loader": {"cache": "none"}},
    "chosen bank, landmarks around random cells": {
        "model": {"bank_choice": "kmeans"},
        "start": {"landmark_choice": "random"},
    },
}


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("parts", OTHERS.values(), ids=OTHERS)
def test_other_settings_have_the_same_bits_on_two_ranks(
    place: Place, tmp_path: Path, parts: dict[str, dict[str, Any]]
) -> None:
    config = changed(**parts)
    assert place.train(tmp_path / "run-2", config, 2) == place.train(tmp_path / "run-1", config, 1)


@pytest.mark.ddp
@pytest.mark.slow
def test_the_paper_s_settings_run_on_two_ranks(place: Place, tmp_path: Path) -> None:
    from scamac_scale.config import config_from_dict

    config = config_from_dict(yaml.safe_load((Path(__file__).parents[2] / "configs" / "paper.yaml").read_text()))
    small = replace(config.model, encoder_width=64, latent_width=16)
    config = replace(config, n_clusters=5, model=small, train=replace(config.train, rounds=2, accelerator="cpu"))
    assert place.train(tmp_path / "run-2", config, 2) == place.train(tmp_path / "run-1", config, 1)


KILLS = ("train.step:9:kill", "checkpoint.prune:3:kill", "train.sweep:9:kill", "train.landmarks:5:kill")


@pytest.mark.ddp
@pytest.mark.parametrize(
    "parts",
    [
        {},
        *(pytest.param(OTHERS[name], marks=pytest.mark.slow, id=name) for name in ("as the paper has it", "streamed")),
    ],
)
@pytest.mark.slow
def test_a_run_is_killed_and_goes_on_with_another_number_of_ranks(
    place: Place, tmp_path: Path, parts: dict[str, dict[str, Any]]
) -> None:
    config = changed(**parts)
    options = [*place.options(tmp_path / "run", config), "--resume", "--train.checkpoint_every_steps", "2"]
    n_kills = 0
    for ranks, fault in zip((1, 2, 1, 4), KILLS, strict=True):
        ended = place.jobs.run(*options, ranks=ranks, fault=fault, constants=SMALL)
        n_kills += f"fault: {fault}" in ended.errors
        assert (0 not in ended.codes) is (f"fault: {fault}" in ended.errors), ended
    assert n_kills >= 3  # the last may be done before its fault
    ended = place.jobs.run(*options, ranks=2, constants=SMALL)
    assert ended.codes == [0, 0], ended.errors
    assert fingerprint(tmp_path / "run", place.store) == place.train(tmp_path / "whole", config, 1)


@pytest.mark.ddp
@pytest.mark.slow
def test_plain_sums_agree_to_rounding(place: Place, tmp_path: Path) -> None:
    fifty = changed(train={"sums": "ranks", "pretrain": PhaseConfig(epochs=0, min_steps=50), "rounds": 0})
    weights = []
    for ranks in (1, 2):
        place.train(tmp_path / f"run-{ranks}", fifty, ranks)
        weights.append(load_file(tmp_path / f"run-{ranks}" / "model" / "model.safetensors"))
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() <= 1e-5, name


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_plain_sums_give_the_same_labels_or_such_as_are_as_good(place: Place, tmp_path: Path, ranks: int) -> None:
    from scamac_scale import ScAMAC

    config = changed(train={"sums": "ranks"})
    labels = []
    for size in (1, ranks):
        place.train(tmp_path / f"run-{size}", config, size)
        found = ScAMAC.load(tmp_path / f"run-{size}" / "model").predict(place.store)
        labels.append(found.obs["scamac_cluster"].to_numpy().astype(np.int64))
    if ranks == 3:  # blocks of its own, and with them another draw of the noise: as another seed, which is as good
        types = np.unique(found.obs["cell_type"], return_inverse=True)[1]
        alone, together = (clustering_scores(types, one)["ari"] for one in labels)
        assert together == pytest.approx(alone, abs=0.05)  # four seeds of one process: .66 to .68
    else:
        assert clustering_scores(*labels)["ari"] >= 0.99


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["devices", "torchrun"])
def test_both_launchers_give_the_bits_of_one_process(place: Place, tmp_path: Path, launcher: str) -> None:
    alone = place.jobs.run(*place.options(tmp_path / "alone", CONFIG))  # with cells of sweeps as users have them
    assert alone.codes == [0]
    options = place.options(tmp_path / "run", CONFIG)
    python = ["-m", "scamac_scale", *options, "--devices", "2"]
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "--",
        "scamac_scale",
        *options,
    ]
    subprocess.run([sys.executable, *(python if launcher == "devices" else torchrun)], check=True)
    assert fingerprint(tmp_path / "run", place.store) == fingerprint(tmp_path / "alone", place.store)


@pytest.mark.ddp
def test_more_ranks_than_a_batch_has_work_for_are_refused(place: Place, tmp_path: Path) -> None:
    ended = place.jobs.run(*place.options(tmp_path / "run", changed(train={"batch_cells": 60})), ranks=2)
    assert ended.codes == [2, 2]
    assert "a batch of 60 cells is too small for 2 processes" in ended.errors
    assert ended.errors.count("error:") == 1  # rank 0 speaks for all
    assert not (tmp_path / "run").exists()
