"""Clusters cut further: from files to a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from scamac_scale.api import ingest, refine
from scamac_scale.cli.main import main
from scamac_scale.config import IngestConfig
from scamac_scale.durable import faults
from scamac_scale.durable.atomic import partial_folder
from scamac_scale.errors import ConfigError, InputError, OutputError, ResumeError
from scamac_scale.subclusters import work
from scamac_scale.subclusters.output import table_path
from tests.support.levels import N_OF_TYPE, model_of_levels, two_levels, write_levels

if TYPE_CHECKING:
    from pathlib import Path

ASKED = {"key": "cell_type", "min_cells": 60}


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("levels")
    atlas, result = write_levels(folder)
    refine(atlas, folder / "out.zarr", model=model_of_levels(), result=result, **ASKED)
    return folder


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_cluster_of_two_parts_is_cut_and_those_of_one_stay_whole(levels: Path) -> None:
    found = ad.read_zarr(levels / "out.zarr")
    assert found.obs["scamac_subcluster"].cat.categories.tolist() == ["a.1", "a.2", "b", "c"]
    own = found.obs[found.obs["cell_type"] == "a"]
    assert adjusted_rand_score(own["fine"], own["scamac_subcluster"]) > 0.9
    assert (own["scamac_subcluster"] == "a.1").sum() > (own["scamac_subcluster"] == "a.2").sum()


def test_the_result_keeps_what_it_held_in_the_order_of_the_input(levels: Path) -> None:
    before, found = ad.read_zarr(levels / "result.zarr"), ad.read_zarr(levels / "out.zarr")
    assert found.obs_names.equals(before.obs_names)
    for key in before.obsm:
        np.testing.assert_array_equal(found.obsm[key], before.obsm[key])
    assert found.obs["scamac_cluster"].tolist() == before.obs["scamac_cluster"].tolist()
    assert found.uns["scamac_details"]["identity"] == before.uns["scamac_details"]["identity"]


def test_the_table_tells_every_test_in_the_result_and_beside_it(levels: Path) -> None:
    table = ad.read_zarr(levels / "out.zarr").uns["scamac_refine"]["table"]
    assert table["cluster"].tolist()[:3] == ["a", "a", "b"]
    first = table.iloc[0]
    assert first["is_split"]
    assert first["n_cells"] == N_OF_TYPE
    assert first["separation"] > 1.5 * first["null_mean"]
    marked = {f"gene{gene:03d}" for gene in range(40, 55)}
    assert marked >= set(first["genes_first"].split()) or marked >= set(first["genes_second"].split())
    assert not table[table["cluster"] != "a"]["is_split"].any()
    assert (levels / "out.refine.csv").read_text().count("\n") == 1 + len(table)


@pytest.mark.slow
def test_labels_are_predicted_where_no_result_is_given(levels: Path, tmp_path: Path) -> None:
    model = model_of_levels()
    refine(levels / "atlas.h5ad", tmp_path / "one.zarr", model=model, min_cells=20)
    refine(levels / "atlas.h5ad", tmp_path / "two.zarr", model=model, min_cells=20, result=levels / "result.zarr")
    one, two = (ad.read_zarr(tmp_path / name).obs["scamac_subcluster"].tolist() for name in ("one.zarr", "two.zarr"))
    assert one == two


@pytest.mark.slow
def test_chosen_clusters_alone_are_cut_and_an_h5ad_holds_the_same(levels: Path, tmp_path: Path) -> None:
    out = refine(
        levels / "atlas.h5ad",
        tmp_path / "out.h5ad",
        model=model_of_levels(),
        result=levels / "result.zarr",
        clusters="b,a",
        **ASKED,
    )
    found, whole = ad.read_h5ad(out), ad.read_zarr(levels / "out.zarr")
    assert found.obs["scamac_subcluster"].tolist() == whole.obs["scamac_subcluster"].tolist()
    assert set(found.uns["scamac_refine"]["table"]["cluster"]) == {"a", "b"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5ad", "out.refine.csv"]


@pytest.mark.parametrize("point", ["refine.sums", "refine.cells", "refine.cluster", "refine.rename"])
@pytest.mark.slow
def test_one_that_was_stopped_is_gone_on_with_to_the_same_bytes(
    levels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    atlas, out = levels / "atlas.h5ad", tmp_path / "out.zarr"
    asked = {"model": model_of_levels(), "result": levels / "result.zarr", **ASKED}
    monkeypatch.setenv("SCAMAC_FAULT", f"{point}:1:term")
    faults._faults.cache_clear()
    faults._COUNTS.clear()
    monkeypatch.setitem(faults.ACTIONS, "term", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        refine(atlas, out, **asked)
    monkeypatch.delenv("SCAMAC_FAULT")
    faults._faults.cache_clear()
    assert not out.exists()
    assert partial_folder(out).exists()
    if point == "refine.rename":
        monkeypatch.setattr(work, "cut_cluster", _never)
    assert refine(atlas, out, resume=True, **asked) == out
    assert bytes_of(out) == bytes_of(levels / "out.zarr")
    assert not partial_folder(out).exists()
    table = table_path(out)
    text = table.read_bytes()
    table.unlink()  # as if it had been killed between the result and its table
    assert refine(atlas, out, resume=True, **asked) == out
    assert table.read_bytes() == text


def test_another_file_of_the_tables_name_is_left_as_it_is(levels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    table_path(out).write_text("mine\n")
    with pytest.raises(OutputError, match="no table of refine"):
        refine(levels / "atlas.h5ad", out, model=model_of_levels(), result=levels / "result.zarr", **ASKED)
    assert table_path(out).read_text() == "mine\n"
    assert not out.exists()


def _interrupt() -> None:
    raise KeyboardInterrupt


def _never(*args: object) -> None:
    raise AssertionError("a cluster is cut twice")


def test_other_work_is_not_gone_on_with(levels: Path) -> None:
    asked = {"model": model_of_levels(), "result": levels / "result.zarr", **ASKED}
    with pytest.raises(ResumeError, match="min_cells"):
        refine(levels / "atlas.h5ad", levels / "out.zarr", resume=True, **{**asked, "min_cells": 70})
    with pytest.raises(OutputError, match="already there"):
        refine(levels / "atlas.h5ad", levels / "out.zarr", **asked)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"clusters": "a,z"}, "has no cluster 'z'; it has a, b, c"),
        ({"min_cells": 5000}, "the largest has 120; lower min_cells"),
        ({"key": "leiden"}, "has no column 'leiden'"),
        ({"min_cells": 1}, "min_cells=1"),
        ({"clusters": ""}, "names none"),
        ({"n_genes": 3}, "n_genes=3"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    levels: Path, tmp_path: Path, asked: dict[str, object], words: str
) -> None:
    with pytest.raises((InputError, ConfigError), match=words):
        refine(
            levels / "atlas.h5ad",
            tmp_path / "out.zarr",
            model=model_of_levels(),
            result=levels / "result.zarr",
            **{**ASKED, **asked},
        )
    assert list(tmp_path.iterdir()) == []


def test_other_cells_than_those_of_the_result_are_refused(levels: Path, tmp_path: Path) -> None:
    asked = {"model": model_of_levels(), "result": levels / "result.zarr", **ASKED}
    cells = two_levels()
    for name, other in (("fewer", cells[:100]), ("turned", cells[::-1])):
        other.copy().write_h5ad(tmp_path / f"{name}.h5ad")
        with pytest.raises(InputError, match="same ones in the same order"):
            refine(tmp_path / f"{name}.h5ad", tmp_path / "out.zarr", **asked)


def test_a_training_store_is_refused(levels: Path, tmp_path: Path) -> None:
    store = ingest(levels / "atlas.h5ad", tmp_path / "store.zarr", IngestConfig(n_genes=20))
    with pytest.raises(InputError, match="is a training store, which keeps only the genes of its fit"):
        refine(store, tmp_path / "out.zarr", model=model_of_levels())


def test_a_result_of_another_model_is_refused(levels: Path, tmp_path: Path) -> None:
    other = model_of_levels()
    other.fitted.clusters.centers.mul_(2)
    with pytest.raises(InputError, match="result of another model"):
        refine(levels / "atlas.h5ad", tmp_path / "out.zarr", model=other, result=levels / "result.zarr")


def test_a_value_that_is_none_is_refused_and_leaves_nothing(levels: Path, tmp_path: Path) -> None:
    cells = two_levels()
    cells.X[300, 5] = np.nan
    (tmp_path / "in").mkdir()
    cells.write_h5ad(tmp_path / "in" / "nan.h5ad")
    with pytest.raises(InputError, match="nan"):
        refine(
            tmp_path / "in" / "nan.h5ad",
            tmp_path / "out.zarr",
            model=model_of_levels(),
            result=levels / "result.zarr",
            **ASKED,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_command_cuts_and_tells_of_its_tests(
    levels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_of_levels().save(tmp_path / "model")
    files = ["--input", str(levels / "atlas.h5ad"), "--result", str(levels / "result.zarr"), "--key", "cell_type"]
    argv = ["refine", "--run", str(tmp_path), *files, "--out", str(tmp_path / "out.zarr"), "--min-cells", "60"]
    assert main(argv) == 0
    assert "a.1" in ad.read_zarr(tmp_path / "out.zarr").obs["scamac_subcluster"].cat.categories
    assert main([*argv[:-1], "600"]) == 4
    assert main([*argv, "--clusters", "x", "--out", str(tmp_path / "other.zarr")]) == 2
    assert "has no cluster 'x'" in capsys.readouterr().err
