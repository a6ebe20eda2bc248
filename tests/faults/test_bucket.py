"""Real processes on machines without a shared disk, a bad network in between: killed anywhere, they end with the bytes of a calm local run."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import numpy as np
import pytest
import yaml

from scamac_scale import IngestConfig, ingest
from scamac_scale.durable.differences import plain
from tests.support.bucket import ObjectServer
from tests.support.chaos import MIXED, Chaos, chaos
from tests.support.objects import SECRETS, Objects
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.nursery import Ended, Nursery

SMALL = {"sweep.SWEEP_CELLS": 32, "sweep.TICK_BATCHES": 2, "train.clusters.landmarks.SWEEP_CELLS": 32}
"""So that 300 cells are several turns of a sweep."""
OFTEN = ("--train.checkpoint_every_steps", "5")
PATIENCE = {"SCAMAC_OBJECT_TIMEOUT_S": "5", "SCAMAC_OBJECT_PATIENCE_S": "60"}


class Place(NamedTuple):
    """What the machines share: a store, a bucket, and the network to it."""

    folder: Path
    store: Path
    jobs: Nursery
    server: ObjectServer
    network: Chaos

    def run(self, machine: str, *argv: str, **how: Any) -> Ended:
        """Run a command on a machine, which is a folder."""
        reach = {**self.server.environment, "AWS_ENDPOINT_URL": self.network.url}
        environ = {**reach, **PATIENCE, "SCAMAC_WORK_DIR": str(self.folder / machine)}
        ended = self.jobs.run(*argv, "--quiet", constants=SMALL, environ=environ, **how)
        assert not any(secret in ended.errors for secret in SECRETS)
        return ended

    def train(self, machine: str, run: str, *more: str, **how: Any) -> Ended:
        options = ["--config", str(self.folder / "config.yaml"), "--store", str(self.store)]
        return self.run(machine, "train", "--run", run, *options, *more, **how)

    def objects(self, url: str) -> Objects:
        return Objects(self.server, url)


@pytest.fixture(scope="module")
def place(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory, jobs: Nursery) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("machines")
    store = ingest(tiny_atlas, folder / "store.zarr", IngestConfig(n_genes=100))
    start = replace(QUICK.start, landmark_cells=80, components=(5,))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(asdict(replace(QUICK, start=start)))))
    with ExitStack() as stack:
        server = stack.enter_context(ObjectServer())
        network = stack.enter_context(chaos(server.address, seed=7, shares=MIXED, stall_s=0.2))
        yield Place(folder, store, jobs, server, network)


class Unbroken:
    """Weights of runs on a local disk."""

    def __init__(self, place: Place) -> None:
        self._place, self._found = place, dict[int, bytes]()

    def __getitem__(self, ranks: int) -> bytes:
        if ranks not in self._found:
            run = self._place.folder / f"unbroken-{ranks}"
            ended = self._place.train("disk", str(run), ranks=ranks)
            assert ended.codes == [0] * ranks, ended.errors
            self._found[ranks] = (run / "model" / "model.safetensors").read_bytes()
        return self._found[ranks]


@pytest.fixture(scope="module")
def unbroken(place: Place) -> Unbroken:
    return Unbroken(place)


def kill_on_the_way(place: Place, run: str, faults: tuple[str, ...], ranks: int = 1) -> None:
    """Kill a run on one machine after the other, and end it on the last."""
    for number, fault in enumerate(faults):
        ended = place.train(f"machine-{number}", run, "--resume", *OFTEN, ranks=ranks, fault=fault)
        assert f"fault: {fault}" in ended.errors, ended
        assert 0 not in ended.codes, ended
    ended = place.train("last machine", run, "--resume", ranks=ranks)
    assert ended.codes == [0] * ranks, ended.errors


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("faults", "ranks"),
    [
        (("bucket.latest:2:kill",), 1),
        pytest.param(("train.step:12:kill", "bucket.latest:2:kill", "train.sweep:9:kill"), 1, marks=pytest.mark.slow),
        pytest.param(("train.step:12:kill", "bucket.latest:2:kill", "train.sweep:9:kill"), 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_run_that_is_killed_on_some_machines_ends_on_another_as_if_nothing_had_been(
    place: Place, unbroken: Unbroken, faults: tuple[str, ...], ranks: int
) -> None:
    run = f"{place.server.new_bucket()}/runs/{ranks}"
    kill_on_the_way(place, run, faults, ranks)
    objects = place.objects(run)
    assert objects.read("model/model.safetensors") == unbroken[ranks]
    assert objects.latest()["generation"] > len(faults)
    assert len(objects.checkpoints()) <= 2
    assert "checkpoints/codes" not in objects.names()
    assert place.network.n_faults() > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        ("bucket.checkpoint:1:kill", "bucket.checkpoint:3:kill", "train.landmarks:3:kill"),
        ("checkpoint.rename:2:kill", "train.model:1:kill", "bucket.run:1:kill"),
        ("train.consensus:1:kill", "train.step:3:kill", "bucket.run:1:kill"),
        ("train.step:3:exit", "train.step:7:term", "train.step:3:term"),
    ],
    ids=str,
)
def test_every_point_can_kill(place: Place, unbroken: Unbroken, faults: tuple[str, ...]) -> None:
    run = f"{place.server.new_bucket()}/run"
    kill_on_the_way(place, run, faults)
    assert place.objects(run).read("model/model.safetensors") == unbroken[1]
    ended = place.run("reader", "inspect", run, "--verify")
    assert ended.codes == [0], ended.errors


@pytest.mark.slow
def test_a_signal_saves_into_the_bucket_before_the_process_ends(place: Place, unbroken: Unbroken) -> None:
    run = f"{place.server.new_bucket()}/run"
    ended = place.train("here", run, fault="train.step:9:term")
    assert ended.codes == [75], ended.errors
    assert "a checkpoint is saved" in ended.errors
    newest = place.objects(run).latest()["newest"]
    assert "-step-9-" in newest["name"]
    ended = place.train("there", run, "--resume")
    assert ended.codes == [0], ended.errors
    assert place.objects(run).read("model/model.safetensors") == unbroken[1]


def test_ranks_of_machines_that_share_no_folder_are_told_what_to_do(place: Place) -> None:
    run = f"{place.server.new_bucket()}/run"
    ended = place.train("here", run, ranks=2, rank_1_environ={"SCAMAC_WORK_DIR": str(place.folder / "another")})
    assert ended.codes == [4, 4], ended.errors
    assert "is not seen by rank 1: ranks share a folder while they work; set SCAMAC_WORK_DIR" in ended.errors
    assert place.objects(run).names() == []


def predicted(place: Place, url: str, name: str) -> Path:
    """A result as another program fetches it."""
    folder = place.folder / name
    objects = place.objects(url)
    for key in objects.names():
        if not key:  # it is one object
            folder.write_bytes(objects.read())
            continue
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(objects.read(key))
    return folder


@pytest.mark.slow
def test_a_loss_that_is_not_finite_leaves_its_list_of_cells_in_the_bucket(place: Place) -> None:
    run = f"{place.server.new_bucket()}/run"
    ended = place.train("here", run, *OFTEN, fault="train.loss:20:nan")
    assert ended.codes == [5], ended.errors
    names = place.objects(run).names()
    assert any(name.startswith("nonfinite-step-") for name in names), names
    assert "metrics.csv" in names
    assert place.objects(run).checkpoints()


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
def test_ranks_predict_into_a_bucket_what_one_does(place: Place, unbroken: Unbroken, suffix: str) -> None:
    assert unbroken[1]
    out, run = f"{place.server.new_bucket()}/result{suffix}", str(place.folder / "unbroken-1")
    command = ("predict", "--run", run, "--input", str(place.store), "--out")
    ended = place.run("here", *command, out, ranks=2, fault="bucket.result:1:kill")
    assert 0 not in ended.codes, ended
    for how in (("--resume",), ("--resume",)):  # the second time there is nothing left to do
        ended = place.run("here", *command, out, *how, ranks=2)
        assert ended.codes == [0, 0], ended.errors
    ended = place.run("here", *command, str(place.folder / f"one{suffix}"))
    assert ended.codes == [0], ended.errors
    far, near = (read_result(path) for path in (predicted(place, out, f"two{suffix}"), place.folder / f"one{suffix}"))
    for key in ("X_scAMAC", "scamac_membership"):
        np.testing.assert_array_equal(far.obsm[key], near.obsm[key])


def read_result(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)


@pytest.mark.slow
def test_from_an_input_to_a_result_nothing_but_the_bucket_is_shared(place: Place, tiny_atlas: Path) -> None:
    """Ingest, train and predict on machines of their own, each killed once: the bytes of a local run."""
    bucket, local = place.server.new_bucket(), place.folder / "all"
    options = ["--config", str(place.folder / "config.yaml")]
    place.objects(bucket).write("in/atlas.h5ad", tiny_atlas.read_bytes())
    for data, store, home, result in (
        (str(tiny_atlas), f"{local}.store.zarr", str(local), f"{local}.zarr"),
        (f"{bucket}/in/atlas.h5ad", f"{bucket}/atlas.store.zarr", f"{bucket}/run", f"{bucket}/out/result.zarr"),
    ):
        is_far = home.startswith("s3://")
        commands = (
            (("ingest", data, "--out", store, "--ingest.n_genes", "100"), "ingest.shard:1:kill"),
            (("train", "--store", store, "--run", home, *options, *OFTEN), "train.step:12:kill"),
            (("predict", "--run", home, "--input", store, "--out", result), "predict.rename:1:kill"),
        )
        for command, fault in commands:
            if is_far:
                ended = place.run(f"{command[0]} first", *command, fault=fault)
                assert f"fault: {fault}" in ended.errors, ended
            ended = place.run(f"{command[0]} second", *command, *(("--resume",) if is_far else ()))
            assert ended.codes == [0], ended.errors
    objects = place.objects(f"{bucket}/run")
    assert objects.read("model/model.safetensors") == (local / "model" / "model.safetensors").read_bytes()
    fetched, expected = predicted(place, f"{bucket}/out/result.zarr", "fetched.zarr"), place.folder / "all.zarr"
    for path in (path for path in expected.rglob("*") if path.is_file()):
        assert (fetched / path.relative_to(expected)).read_bytes() == path.read_bytes(), path
    there = place.objects(bucket)
    for key in there.names():
        assert not any(secret.encode() in there.read(key) for secret in SECRETS), key
    ended = place.run("reader", "evaluate", f"{bucket}/out/result.zarr", "--label", "cell_type")
    assert ended.codes == [0], ended.errors
    assert place.network.n_faults() > 20
