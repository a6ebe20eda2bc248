"""scanpy's neighbors on more than 8,192 cells, where it takes another path, which broke with other versions."""

import anndata as ad
import numpy as np
import pytest


@pytest.mark.slow  # compiles for most of a minute
@pytest.mark.filterwarnings("default")  # scanpy and its parts warn about each other
def test_scanpy_finds_neighbors_of_9000_cells_in_the_latent() -> None:
    import scanpy as sc

    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 9000)
    centers = rng.normal(0, 10, (5, 32))
    adata = ad.AnnData(obsm={"X_scAMAC": (centers[label] + rng.normal(size=(9000, 32))).astype(np.float32)})
    sc.pp.neighbors(adata, use_rep="X_scAMAC")
    graph = adata.obsp["connectivities"].tocoo()
    assert graph.shape == (9000, 9000)
    assert graph.nnz > 9000 * 10
    np.testing.assert_array_equal(label[graph.row], label[graph.col])
