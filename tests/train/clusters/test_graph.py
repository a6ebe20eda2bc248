import numpy as np
import pytest

from scamac_scale.train.clusters.graph import fuzzy_graph, leiden, nearest_neighbors
from tests.support.points import blobs


def test_nearest_neighbors_leave_the_point_itself_out() -> None:
    points = blobs()
    distances, indices = nearest_neighbors(points, 5)
    full = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(full, np.inf)
    np.testing.assert_allclose(distances, np.sort(full, axis=1)[:, :5])
    assert not (indices == np.arange(len(points))[:, None]).any()


def test_graph_is_symmetric_with_weights_up_to_one() -> None:
    graph = fuzzy_graph(blobs())
    assert abs(graph - graph.T).max() == 0
    assert graph.diagonal().sum() == 0
    assert graph.data.min() > 0
    assert graph.data.max() <= 1 + 1e-12


def test_graph_survives_duplicate_points() -> None:
    graph = fuzzy_graph(np.repeat(blobs(10, 2), 3, axis=0))
    assert np.isfinite(graph.data).all()


def test_leiden_finds_separate_groups_and_is_a_function_of_the_seed() -> None:
    graph = fuzzy_graph(blobs())
    found = leiden(graph, 0.5, seed=3)
    truth = np.repeat(np.arange(4), 40)
    assert len(np.unique(found)) == len(np.unique(found * 4 + truth)) == 4
    np.testing.assert_array_equal(found, leiden(graph, 0.5, seed=3))


@pytest.mark.slow  # umap compiles for 15 s
@pytest.mark.filterwarnings("ignore")  # of scanpy and umap, not ours
def test_graph_and_communities_equal_scanpy() -> None:
    import anndata as ad
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score

    points = blobs(60, 5, seed=1).astype(np.float32)
    adata = ad.AnnData(points)
    sc.pp.neighbors(adata, n_neighbors=15, use_rep="X")
    sc.tl.leiden(adata, resolution=0.5, flavor="igraph", n_iterations=2, directed=False)
    ours = fuzzy_graph(points)
    # scanpy's weights are float32 from a bisection that stops at 1e-5
    np.testing.assert_allclose(ours.toarray(), adata.obsp["connectivities"].toarray(), atol=2e-4)
    assert adjusted_rand_score(adata.obs["leiden"], leiden(ours, 0.5, seed=0)) == 1.0
