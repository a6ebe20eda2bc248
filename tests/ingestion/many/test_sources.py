"""Many files where a model is fitted, or predicts: each counts as it does alone, and results are in their order."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scamac_scale import ScAMAC
from scamac_scale.cli.main import main
from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError
from scamac_scale.evaluation import evaluate
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.sources import open_source
from scamac_scale.store.reader import StoreReader
from tests.support.atlas import build_tiny_atlas
from tests.support.command_line import QUICK
from tests.support.csr import dense
from tests.support.fitted import fitted_model
from tests.support.many import arrays_of, cut, with_other_genes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cluster import Cluster

CONFIG = IngestConfig(n_genes=60, block_cells=40)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return cut(build_tiny_atlas(), tmp_path_factory.mktemp("parts"), 4)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return with_other_genes(build_tiny_atlas(), tmp_path_factory.mktemp("others"))


@pytest.fixture(scope="module")
def model() -> ScAMAC:
    fitted = fitted_model()
    model = ScAMAC(config=fitted.config)
    model._fitted = fitted
    return model


def test_cells_of_each_file_are_those_of_the_file_alone(
    others: list[Path], tiny_atlas: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StoreReader(ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG)) as store:
        space = store.gene_space
    assert "gene005" in space.filtered
    with caplog.at_level(logging.WARNING), open_source(list(map(str, others)), space) as source:
        together = dense(source.read(np.arange(300)))
    assert f"{others[2]}: of the {len(space.filtered)} genes" in caplog.text
    at = 0
    for path in others:
        with open_source(path, space) as alone:
            np.testing.assert_array_equal(
                together[at : at + alone.n_cells], dense(alone.read(np.arange(alone.n_cells)))
            )
            at += alone.n_cells


def test_a_file_that_does_not_fit_the_model_is_named(parts: list[Path], tmp_path: Path, model: ScAMAC) -> None:
    adata = build_tiny_atlas()[:50].copy()
    few = adata[:, 12:].copy()
    few.write_h5ad(tmp_path / "few.h5ad")
    with pytest.raises(InputError, match=r"few.h5ad has 8 of the 20 genes of the model"):
        model.predict([parts[0], tmp_path / "few.h5ad"])
    adata.X = adata.X * 0.31
    adata.write_h5ad(tmp_path / "scaled.h5ad")
    with pytest.raises(InputError, match=r"scaled.h5ad.*is not a whole number"):
        model.predict([parts[0], tmp_path / "scaled.h5ad"])


def test_names_of_genes_are_looked_for_in_each_file(parts: list[Path], tmp_path: Path, model: ScAMAC) -> None:
    expected = model.predict(parts)
    adata = build_tiny_atlas()[75:150].copy()
    adata.var["feature_name"] = adata.var_names.to_numpy()
    adata.var_names = [f"ENSG{number:011d}" for number in range(adata.n_vars)]
    adata.write_h5ad(tmp_path / "ids.h5ad")
    found = model.predict([parts[0], tmp_path / "ids.h5ad", *parts[2:]])
    np.testing.assert_array_equal(found.obsm["X_scAMAC"], expected.obsm["X_scAMAC"])


def test_results_are_in_the_order_of_the_files(parts: list[Path], tiny_atlas: Path, model: ScAMAC) -> None:
    one = model.predict(tiny_atlas)
    many = model.predict(parts)
    assert many.obs_names.tolist() == one.obs_names.tolist()
    np.testing.assert_array_equal(many.obsm["X_scAMAC"], one.obsm["X_scAMAC"])
    turned = model.predict(parts[::-1])
    assert turned.obs_names[:75].tolist() == one.obs_names[225:].tolist()
    assert turned.obs["scamac_file"].iloc[0] == str(parts[3])


@pytest.mark.slow
def test_repeated_names_stay_apart_in_results_and_scores(parts: list[Path], tmp_path: Path, model: ScAMAC) -> None:
    build_tiny_atlas()[:75].copy().write_h5ad(tmp_path / "twin.h5ad")
    out = model.predict([parts[0], tmp_path / "twin.h5ad"], tmp_path / "out.h5ad")
    scores = evaluate(out, "cell_type", batch_key="scamac_file")
    assert scores["n_cells"] == 150
    with pytest.warns(UserWarning, match="Observation names are not unique"):  # anndata's own
        found = model.predict([parts[0], tmp_path / "twin.h5ad"])
    assert found.obs_names[:75].tolist() == found.obs_names[75:].tolist()
    np.testing.assert_array_equal(found.obsm["X_scAMAC"][:75], found.obsm["X_scAMAC"][75:])


def test_a_fit_takes_files_and_some_of_their_cells(parts: list[Path], tmp_path: Path) -> None:
    where = "cell_type != 'type3'"
    config = IngestConfig(n_genes=60, where=where, min_genes=5)
    with open_source(parts, ingest=config) as source, StoreReader(ingest(parts, tmp_path / "a.zarr", config)) as store:
        assert source.gene_space == store.gene_space
        np.testing.assert_array_equal(
            dense(source.read(np.asarray(store.source_rows))), dense(store.read(np.arange(store.n_cells)))
        )


def test_the_command_line_fits_and_predicts_many_files(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, pattern = str(tmp_path / "run"), str(parts[0].parent / "*.h5ad")
    assert main(["train", "--store", *map(str, parts), "--run", run, *QUICK, "--quiet"]) == 0
    assert main(["predict", "--run", run, "--input", pattern, "--out", str(tmp_path / "o.zarr"), "--quiet"]) == 0
    assert main(["predict", "--run", run, "--input", str(tmp_path / "*.h5"), "--out", str(tmp_path / "p.zarr")]) == 2
    assert "nothing has a name like" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cluster_writes_the_same_store_and_results(
    cluster: Cluster, others: list[Path], tmp_path: Path, model: ScAMAC
) -> None:
    config = IngestConfig(n_genes=60, block_cells=40, where="cell_type != 'type3'", min_genes=5, join="outer")
    here = ingest(others, tmp_path / "a.zarr", config)
    there = ingest(others, tmp_path / "b.zarr", config, dask=cluster.address)
    assert arrays_of(there) == arrays_of(here)
    one = model.predict(others)
    many = model.predict(others, dask=cluster.address)
    np.testing.assert_array_equal(one.obsm["X_scAMAC"], many.obsm["X_scAMAC"])
