"""Predictions by dask workers: the bytes of those of one process."""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scamac_scale import ScAMAC
from scamac_scale.cli.main import main
from scamac_scale.errors import ClusterError, ConfigError, InputError, NumericalError, StoppedError, StoreError
from scamac_scale.infer.output.disk import DiskOutput
from scamac_scale.workers import connect
from scamac_scale.workers.connect import connected
from tests.support.atlas import build_tiny_atlas
from tests.support.cluster import Cluster, running
from tests.support.fitted import fitted_model, with_correction, with_tree
from tests.support.formats import write_zarr
from tests.support.prediction import look_often, make_stores, model_of, tree_digest

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.fitted import FittedModel


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stores(tmp_path_factory.mktemp("data") / "stores")


@pytest.fixture(autouse=True)
def _small_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    look_often(monkeypatch.setattr, every_s=1000.0)


def by(model: FittedModel) -> ScAMAC:
    found = ScAMAC(config=model.config)
    found._fitted = model
    return found


@pytest.mark.parametrize("name", ["shuffled.zarr", "atlas.zarr"])
def test_a_prediction_is_the_same_to_the_byte(cluster: Cluster, stores: Path, tmp_path: Path, name: str) -> None:
    model = by(model_of(stores / "shuffled.zarr"))
    for out, dask in (("a.zarr", None), ("b.zarr", cluster.address)):
        model.predict(stores / name, tmp_path / out, denoised=True, dask=dask)
    assert tree_digest(tmp_path / "a.zarr") == tree_digest(tmp_path / "b.zarr")


def test_technical_batches_and_other_cuts_are_told_to_the_workers(cluster: Cluster, tmp_path: Path) -> None:
    """Known batches, and one that the fit has not seen."""
    adata = build_tiny_atlas()
    adata.obs["donor"] = np.array(["ann", "bob", "dan"])[np.arange(300) % 3]
    adata.obs["chip"] = np.array(["10", "11"])[np.arange(300) % 2]
    adata.write_h5ad(tmp_path / "x.h5ad")
    model = by(with_tree(with_correction(fitted_model())))
    cuts = {"n_clusters": 5, "levels": (2, 9)}
    for out, dask in (("a.zarr", None), ("b.zarr", cluster.address)):
        model.predict(tmp_path / "x.h5ad", tmp_path / out, denoised=True, denoised_batch="mean", dask=dask, **cuts)
    assert tree_digest(tmp_path / "a.zarr") == tree_digest(tmp_path / "b.zarr")


def test_a_stopped_prediction_goes_on_with_workers(
    cluster: Cluster, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = by(model_of(stores / "shuffled.zarr")), stores / "shuffled.zarr"
    expected = tree_digest(model.predict(store, tmp_path / "a.zarr"))
    with monkeypatch.context() as patch:
        patch.setattr(DiskOutput, "tick", _stop_after_two)
        with pytest.raises(StoppedError):
            model.predict(store, tmp_path / "b.zarr")
    written: list[Any] = []
    write = DiskOutput.write
    monkeypatch.setattr(DiskOutput, "write", lambda *told: (written.append(len(told[1])), write(*told))[1])
    found = model.predict(store, tmp_path / "b.zarr", resume=True, dask=cluster.address)
    assert tree_digest(found) == expected
    assert sum(written) == 5500 - 2 * 1024


def _stop_after_two(output: DiskOutput, turns: int) -> None:
    output.turns = turns
    if turns == 2:
        output._save()
        raise StoppedError("stopped")


def test_what_is_not_finite_is_told_as_without(cluster: Cluster, stores: Path, tmp_path: Path) -> None:
    model = model_of(stores / "shuffled.zarr")
    model.network.state_dict()["synergy_norm.weight"].fill_(3e38)
    told = []
    for dask in (None, cluster.address):
        with pytest.raises(NumericalError) as error:
            by(model).predict(stores / "ordered.zarr", tmp_path / "a.zarr", dask=dask)
        told.append((str(error.value), error.value.exit_code))
    assert told[0] == told[1]
    assert list(tmp_path.iterdir()) == []


def test_what_workers_do_not_do_is_refused(cluster: Cluster, stores: Path, tmp_path: Path) -> None:
    model = by(model_of(stores / "ordered.zarr"))
    with pytest.raises(ConfigError, match="attention=atlas needs all cells in one place"):
        model.predict(stores / "ordered.zarr", tmp_path / "a.zarr", attention="atlas", dask=cluster.address)
    with pytest.raises(InputError, match="workers cannot read AnnData values in memory"):
        by(fitted_model()).predict(build_tiny_atlas(), tmp_path / "a.zarr", dask=cluster.address)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_sees_other_cells_is_named(
    cluster: Cluster, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another store, or another file, takes the place of the input while the cluster is met."""
    model = by(model_of(stores / "ordered.zarr"))
    check = connect._check_processes
    for name, other in (("store", stores / "shuffled.zarr"), ("x.h5ad", tmp_path / "other.h5ad")):
        data = tmp_path / name
        if name == "store":
            shutil.copytree(stores / "ordered.zarr", data)
        else:
            build_tiny_atlas().write_h5ad(data)
            build_tiny_atlas()[::-1].copy().write_h5ad(other)
            model = by(fitted_model())

        def late(client: Any, data: Path = data, other: Path = other) -> None:
            check(client)
            shutil.move(data, tmp_path / "gone")
            other.rename(data) if other.is_file() else shutil.copytree(other, data)

        monkeypatch.setattr(connect, "_check_processes", late)
        seen = rf"worker tcp://.* cannot open .*{name}.* was changed since|/{name}/.* is of another store"  # or by this process
        with pytest.raises((ClusterError, StoreError), match=seen):
            model.predict(data, tmp_path / "a.zarr", dask=cluster.address)
        assert not [path for path in tmp_path.iterdir() if "a.zarr" in path.name]


@pytest.mark.parametrize("kind", ["store", "h5ad", "zarr"])
def test_an_input_that_is_replaced_while_it_is_predicted_is_refused(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data, out = tmp_path / "x", tmp_path / "a.zarr"
    model = by(fitted_model() if kind != "store" else model_of(stores / "ordered.zarr"))
    if kind == "store":
        shutil.copytree(stores / "ordered.zarr", data)
    else:
        write_zarr(build_tiny_atlas(), data) if kind == "zarr" else build_tiny_atlas().write_h5ad(data)
    write = DiskOutput.write

    def late(output: DiskOutput, *told: Any) -> None:
        write(output, *told)
        chunk = {"store": data / "zarr.json", "h5ad": data}.get(kind) or next(
            path for path in (data / "X" / "data").rglob("*") if path.is_file()
        )
        chunk.with_name("new").write_bytes(chunk.read_bytes())
        chunk.with_name("new").replace(chunk)

    monkeypatch.setattr(DiskOutput, "write", late)
    with pytest.raises(InputError, match="was changed while it was read"):
        model.predict(data, out)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(stores: Path, tmp_path: Path) -> None:
    model = by(model_of(stores / "shuffled.zarr"))
    expected = tree_digest(model.predict(stores / "shuffled.zarr", tmp_path / "a.zarr", denoised=True))
    with running(tmp_path, "cluster.task:1:kill", "") as cluster:
        with connected(cluster.address) as client:
            client.wait_for_workers(2, timeout=60)
        found = model.predict(stores / "shuffled.zarr", tmp_path / "b.zarr", denoised=True, dask=cluster.address)
        assert cluster.workers[0].wait(10) == -signal.SIGKILL
    assert tree_digest(found) == expected


@pytest.mark.slow
def test_the_command_line_starts_workers(stores: Path, tmp_path: Path) -> None:
    model = by(model_of(stores / "shuffled.zarr"))
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model")
    command = ["predict", "--run", str(tmp_path / "run"), "--input", str(stores / "shuffled.zarr"), "--out"]
    assert main([*command, str(tmp_path / "a.zarr")]) == 0
    assert main([*command, str(tmp_path / "b.zarr"), "--workers", "2"]) == 0
    assert tree_digest(tmp_path / "a.zarr") == tree_digest(tmp_path / "b.zarr")
