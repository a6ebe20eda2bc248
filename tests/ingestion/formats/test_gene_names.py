"""Names of genes from a column of var, in every format; a prediction finds the column by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scamac_scale import IngestConfig, ScAMAC
from scamac_scale.cli.main import main
from scamac_scale.errors import ConfigError, InputError
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.pipeline import ingest
from tests.support.formats import write_tenx, write_zarr
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scamac_scale.ingestion.raw import RawMatrix


@pytest.fixture
def cells(tiny_adata: ad.AnnData) -> ad.AnnData:
    """With symbols as a column, as CELLxGENE has them, and log values in X where raw has counts."""
    names = list(tiny_adata.var_names)
    tiny_adata.var["feature_name"] = pd.Categorical([*names[:5], names[4], *names[6:]])
    tiny_adata.var["length"] = np.arange(200)
    tiny_adata.var["lacking"] = [None, "", *names[2:]]
    tiny_adata.var_names = [f"ENSG{g:011d}" for g in range(200)]
    tiny_adata.raw = tiny_adata.copy()
    return tiny_adata


def opened(data: Any, form: str, folder: Path, *options: str) -> RawMatrix:
    if form == "h5ad":
        data.write_h5ad(folder / "a.h5ad")
        return open_raw(folder / "a.h5ad", *options)
    return open_raw(write_zarr(data, folder / "a.zarr") if form == "zarr" else data, *options)


@pytest.mark.parametrize("form", ["h5ad", "zarr", "memory"])
@pytest.mark.parametrize("matrix", ["X", "raw"])
@pytest.mark.slow
def test_a_column_names_the_genes(
    form: str, matrix: str, cells: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    names = list(cells.var["feature_name"].astype(str))
    with opened(cells, form, tmp_path, matrix, "feature_name") as raw:
        assert raw.gene_names == (*names[:5], f"{names[4]}-1", *names[6:])
    assert "1 genes share a name and were made unique" in caplog.text


def test_what_is_no_column_of_names_is_refused(cells: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"no column 'symbol' of genes .*columns of text are feature_name, lacking\."):
        open_raw(cells, gene_column="symbol")
    with pytest.raises(InputError, match="the column 'length' of genes holds int64, expected texts"):
        open_raw(cells, gene_column="length")
    assert open_raw(cells, gene_column="lacking").gene_names[1:4] == ("ENSG00000000001", *cells.var["lacking"][2:4])
    assert "2 genes have nothing in the column 'lacking'; they keep their names" in caplog.text
    with pytest.raises(ConfigError, match=r"gene_column='' names no column"):
        IngestConfig(gene_column="")


def test_identifiers_of_a_10x_file(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    for version in (2, 3):
        with open_raw(write_tenx(tiny_adata, tmp_path / f"{version}.h5", version), "X", "gene_ids") as raw:
            assert raw.gene_names[:2] == ("ENSG00000000000", "ENSG00000000001")


@pytest.mark.slow
def test_a_store_is_made_and_a_prediction_finds_the_column(
    cells: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells.write_h5ad(tmp_path / "a.h5ad")
    path = str(tmp_path / "a.h5ad")
    argv = ["--ingest.gene_column", "feature_name", "--ingest.matrix", "raw", "--quiet"]
    assert main(["ingest", path, "--out", str(tmp_path / "s"), *argv]) == 0
    config = IngestConfig(gene_column="feature_name")
    assert ingest(cells, tmp_path / "t", config).is_dir()
    assert config.to_plain()["gene_column"] == "feature_name"
    assert "gene_column" not in IngestConfig().to_plain()
    model = ScAMAC(config=QUICK).fit(tmp_path / "s")
    found = model.predict(path)
    assert "200 in the column 'feature_name'" not in caplog.text
    assert "are matched by that column (gene_column)" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(
        model.predict(path, gene_column="feature_name").obsm["X_scAMAC"], found.obsm["X_scAMAC"]
    )
    np.testing.assert_array_equal(model.predict(tmp_path / "s").obsm["X_scAMAC"], found.obsm["X_scAMAC"])
    assert "gene_column" not in caplog.text
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model")
    argv = ["--input", path, "--out", str(tmp_path / "o.zarr"), "--gene-column", "lacking", "--quiet"]
    assert main(["predict", "--run", str(tmp_path / "run"), *argv]) == 0


def in_dask(chunks: tuple[int, int]) -> Callable[[Any], Any]:
    def wrap(values: Any) -> Any:
        return pytest.importorskip("dask.array").from_array(values, chunks=chunks)

    return wrap


FORMS: dict[str, Callable[[Any], Any]] = {
    "h5ad": np.asarray,
    "zarr": np.asarray,
    "memory": np.asarray,
    "csc h5ad": sparse.csc_matrix,
    "csc zarr": sparse.csc_matrix,
    "csc memory": sparse.csc_matrix,
    "dask memory": in_dask((7, -1)),
    "dask by genes memory": in_dask((-1, 3)),
}


@pytest.mark.parametrize("form", FORMS)
def test_counts_in_raw_are_pointed_out(
    form: str, cells: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    opened(cells, form.split()[-1], tmp_path).close()
    assert "raw does" not in caplog.text  # X has counts, too
    cells.X = FORMS[form](np.log1p(cells.X.toarray()))
    cells.raw = ad.AnnData(FORMS[form](cells.raw.X.toarray()), obs=cells.obs, var=cells.raw.var)
    opened(cells, form.split()[-1], tmp_path).close()
    assert "X holds no counts, raw does: ingest.matrix=raw takes them" in caplog.text
