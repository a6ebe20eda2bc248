from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scamac_scale.errors import InputError, NumericalError
from scamac_scale.infer.options import PredictOptions
from scamac_scale.infer.predict import predict
from scamac_scale.sources import open_source
from tests.support.fitted import GENES, fitted_model, with_correction

if TYPE_CHECKING:
    from pathlib import Path


def predicted(data: ad.AnnData, out: Path | None = None) -> Any:
    model = fitted_model()
    with open_source(data, model.genes) as source:
        return predict(model, source, out, PredictOptions(is_denoised=True))


@pytest.mark.parametrize("out", [None, "out.zarr", "out.h5ad"])
@pytest.mark.slow
def test_genes_of_the_denoised_values_are_named(tiny_adata: ad.AnnData, tmp_path: Path, out: str | None) -> None:
    found = predicted(tiny_adata, None if out is None else tmp_path / out)
    if out is not None:
        found = ad.read_zarr(found) if out.endswith(".zarr") else ad.read_h5ad(found)
    assert isinstance(found.uns["scamac_details"]["genes"], np.ndarray)
    assert found.uns["scamac_details"]["genes"].tolist() == found.var_names.tolist() == list(GENES)


def test_an_input_without_cells_is_refused(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    for out in (None, tmp_path / "out.zarr"):
        with pytest.raises(InputError, match="the input has no cells"):
            predicted(tiny_adata[:0].copy(), out)
    assert list(tmp_path.iterdir()) == []


SPOILT = {
    "X_scAMAC": "synergy_norm.weight",
    "scamac_denoised": "autoencoder.w4.bias",
    "scamac_membership": "centers",
    "X_scAMAC_uncorrected": "gene_mean",
}


@pytest.mark.parametrize("out", [None, "out.zarr"])
@pytest.mark.parametrize("name", SPOILT)
def test_nothing_is_written_that_is_not_finite(
    tiny_adata: ad.AnnData, tmp_path: Path, name: str, out: str | None
) -> None:
    """Each number of the model is finite, and so is each of the cells."""
    model = fitted_model()
    if name == "X_scAMAC_uncorrected":
        model = with_correction(model)
        tiny_adata.obs["donor"], tiny_adata.obs["chip"] = "ann", "10"
    part = model.clusters.centers if name == "scamac_membership" else model.network.state_dict()[SPOILT[name]]
    part.fill_(3e38)
    with (
        open_source(tiny_adata, model.genes) as source,
        pytest.raises(
            NumericalError, match="is not finite in 300 cells, such as rows 0, 1, 2, 3, 4 of the input"
        ) as raised,
    ):
        predict(model, source, None if out is None else tmp_path / out, PredictOptions(is_denoised=True))
    assert raised.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_a_cell_has_the_cluster_of_its_largest_membership(tiny_adata: ad.AnnData) -> None:
    found = predicted(tiny_adata)
    np.testing.assert_array_equal(found.obsm["scamac_membership"].argmax(axis=1), found.obs["scamac_cluster"].cat.codes)
    assert found.obs_names.tolist() == tiny_adata.obs_names.tolist()


@pytest.mark.parametrize("batch", [None, "own", "mean", "cat,10"])
@pytest.mark.parametrize("n_genes", [33, 700])
def test_a_cell_has_the_same_bits_in_any_order_subset_and_company(n_genes: int, batch: str | None) -> None:
    rng = np.random.default_rng(0)
    genes = tuple(f"gene{index:03d}" for index in range(n_genes))
    counts = sparse.csr_matrix(rng.poisson(0.7, (2500, n_genes)).astype(np.float32))
    cells = ad.AnnData(
        counts, obs=pd.DataFrame(index=[str(cell) for cell in range(2500)]), var=pd.DataFrame(index=genes)
    )
    model = fitted_model(genes=genes)
    if batch is not None:
        model = with_correction(model)
        cells.obs["donor"], cells.obs["chip"] = rng.choice(["ann", "bob", "cat"], 2500), rng.choice([10, 11], 2500)
    options = PredictOptions(is_denoised=True, denoised_batch=batch or "own")
    torch.nn.init.normal_(model.network.get_parameter("fusion.alpha"), generator=torch.manual_seed(0))

    def keys(data: ad.AnnData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with open_source(data, model.genes) as source:
            found = predict(model, source, options=options)
        assert isinstance(found, ad.AnnData)
        return found.obsm["X_scAMAC"], found.obs["scamac_cluster"].to_numpy(), found.layers["scamac_denoised"]

    expected = keys(cells)
    order = rng.permutation(2500)
    for rows in (order, order[:1], order[:37], order[:1024], np.arange(1000, 2500)):
        for found, whole in zip(keys(cells[rows].copy()), expected, strict=True):
            np.testing.assert_array_equal(found, whole[rows])
