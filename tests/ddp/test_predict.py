"""A prediction has the same bits on any number of processes and from a store in any order."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

from scamac_scale.errors import ScamacError
from scamac_scale.infer.output import disk
from scamac_scale.ranks.world import World
from tests.support.launch import run_ranks
from tests.support.prediction import ORDERS, digests, look_often, make_stores, run_predict, tree_digest

if TYPE_CHECKING:
    from pathlib import Path

ZARR = [(order, f"{order}.zarr") for order in ORDERS]
H5AD = [(order, f"{order}.h5ad") for order in ORDERS]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    look_often(monkeypatch.setattr)


def predict_all(world: World, stores: Path, folder: Path, outputs: list[tuple[str, str]]) -> list[str]:
    warnings.simplefilter("error")
    look_often()
    return [str(run_predict(stores / f"{order}.zarr", folder / name, world)) for order, name in outputs]


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("size", "outputs"),
    [(2, ZARR), pytest.param(2, H5AD, marks=pytest.mark.slow), pytest.param(4, ZARR + H5AD, marks=pytest.mark.slow)],
)
def test_any_number_of_ranks_writes_the_same_bits(
    stores: Path, tmp_path: Path, size: int, outputs: list[tuple[str, str]]
) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    predict_all(World(), stores, one, outputs)
    paths = run_ranks(predict_all, size, tmp_path / "ranks", stores, many, outputs)
    assert all(of_rank == paths[0] for of_rank in paths)
    names = {"obsm/X_scAMAC", "obsm/scamac_membership", "layers/scamac_denoised", "obs/scamac_cluster/codes"}
    found = [digests(folder / name) for folder in (one, many) for _, name in outputs]
    assert {tuple(of[name] for name in sorted(names)) for of in found} == {
        tuple(found[0][name] for name in sorted(names))
    }
    assert sorted(path.name for path in many.iterdir()) == sorted(name for _, name in outputs)
    for _, name in outputs:  # all files, of one store
        assert not name.endswith(".zarr") or tree_digest(one / name) == tree_digest(many / name)


def stop_and_go_on(world: World, stores: Path, folder: Path) -> list[str]:
    """What several ranks refuse, and a prediction that one of them is told to stop, taken up by all."""
    import os
    import signal

    warnings.simplefilter("error")
    look_often(every_s=30.0)
    store, found = stores / "shuffled.zarr", []

    def said(**options: object) -> str:
        try:
            return str(run_predict(store, **{"out": folder / "out.zarr", "world": world, **options}))
        except ScamacError as error:
            return f"{type(error).__name__} {error}"

    found.append(said(out=None))
    found.append(said(seed=world.rank))
    true_read = disk.read_progress
    disk.MEET_S, disk.read_progress = 0.2, lambda folder: None if world.rank else true_read(folder)
    found.append(said())
    disk.MEET_S, disk.read_progress = 10.0, true_read
    n_blocks = 0

    def reach(point: str) -> None:
        nonlocal n_blocks
        n_blocks += point == "predict.block"
        if world.rank == 1 and n_blocks == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    disk.reach = reach
    found.append(said())
    found.append(said(resume=True, is_denoised=False))
    n_blocks = 10
    found.append(said(resume=True))
    found.append(str(n_blocks - 10))
    found.append(said(resume=True, attention="atlas"))
    return found


@pytest.mark.ddp
@pytest.mark.slow
def test_ranks_stop_together_and_go_on(stores: Path, tmp_path: Path) -> None:
    expected = run_predict(stores / "ordered.zarr", tmp_path / "expected.zarr")
    folder = tmp_path / "many"
    folder.mkdir()
    for found in run_ranks(stop_and_go_on, 2, tmp_path / "ranks", stores, folder):
        assert "ConfigError 2 processes need an output on a disk" in found[0]
        assert "ConfigError rank 1 has another model than rank 0" in found[1]
        assert "OutputError" in found[2]
        assert "is not seen by rank 1" in found[2]
        assert "StoppedError stopped by SIGTERM; what was predicted is kept" in found[3]
        assert "ResumeError" in found[4]
        assert "denoised=False (it was True)" in found[4]
        assert found[5] == str(folder / "out.zarr")
        assert int(found[6]) == 1  # of three
        assert "attention='atlas' (it was 'trained')" in found[7]
    assert digests(folder / "out.zarr") == digests(expected)
    assert [path.name for path in folder.iterdir()] == ["out.zarr"]


def predict_with_atlas(world: World, stores: Path, out: Path) -> str:
    warnings.simplefilter("error")
    look_often()
    return str(run_predict(stores / "shuffled.zarr", out, world, attention="atlas"))


@pytest.mark.ddp
@pytest.mark.slow
def test_attention_over_all_cells_is_shared_by_the_ranks(stores: Path, tmp_path: Path) -> None:
    one = run_predict(stores / "ordered.zarr", tmp_path / "one.zarr", attention="atlas")
    two = run_ranks(predict_with_atlas, 2, tmp_path / "ranks", stores, tmp_path / "two.zarr")[0]
    expected, found = ad.read_zarr(one), ad.read_zarr(two)
    np.testing.assert_allclose(
        found.obsm["X_scAMAC"], expected.obsm["X_scAMAC"], rtol=0, atol=1e-5
    )  # other order of sums
    assert (found.obs["scamac_cluster"] == expected.obs["scamac_cluster"]).mean() > 0.999
    trained = run_predict(stores / "ordered.zarr", tmp_path / "trained.zarr")
    assert not np.allclose(ad.read_zarr(trained).obsm["X_scAMAC"], expected.obsm["X_scAMAC"], atol=1e-3)
