"""Other cuts of the tree of a model, and levels beside its clusters."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from scamac_scale.errors import ConfigError, ResumeError
from scamac_scale.infer.levels import DENDROGRAM_KEY, levels_of, recut
from scamac_scale.infer.options import PredictOptions, counts_of
from scamac_scale.infer.predict import predict
from scamac_scale.sources import open_source
from tests.support.fitted import fitted_model, with_correction, with_tree

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.fitted import FittedModel


def predicted(data: ad.AnnData, out: Path | None = None, model: FittedModel | None = None, **options: Any) -> Any:
    model = model or with_tree(fitted_model())
    resume = options.pop("resume", False)
    with open_source(data, model.genes) as source:
        found = predict(model, source, out, PredictOptions(**options), resume=resume)
    if out is None:
        return found
    return ad.read_zarr(found) if out.suffix == ".zarr" else ad.read_h5ad(found)


def codes(column: Any) -> Any:
    return column.cat.codes.to_numpy().astype(np.int64)


def test_the_number_of_the_fit_gives_its_clusters_to_the_bit(tiny_adata: ad.AnnData) -> None:
    model = with_tree(fitted_model())
    assert model.tree is not None
    assert recut(model, PredictOptions(n_clusters=3)) is model
    between = float(model.tree.merges[[-3, -2], 2].mean())  # below the last two merges
    assert recut(model, PredictOptions(cut=between)) is model
    plain, told = predicted(tiny_adata), predicted(tiny_adata, n_clusters=3)
    for key in plain.obsm:
        np.testing.assert_array_equal(plain.obsm[key], told.obsm[key])
    assert (plain.obs["scamac_cluster"] == told.obs["scamac_cluster"]).all()


def test_another_number_gives_the_means_of_landmarks_as_centers_and_as_many_memberships(
    tiny_adata: ad.AnnData,
) -> None:
    model = with_tree(fitted_model())
    before = model.clusters.centers.clone()
    cut = recut(model, PredictOptions(n_clusters=7))
    assert torch.equal(model.clusters.centers, before)
    assert model.tree is not None
    assert model.landmarks is not None
    labels, weights = model.tree.labels(7), torch.from_numpy(model.tree.weights)
    for k in range(7):
        inside = torch.from_numpy(labels == k)
        w = weights[inside, None]
        expected = (model.landmarks[inside].double() * w).sum(dim=0) / w.sum()
        torch.testing.assert_close(cut.clusters.centers[k].double(), expected, rtol=1e-6, atol=1e-6)
    found = predicted(tiny_adata, n_clusters=7)
    assert found.obsm["scamac_membership"].shape == (300, 7)
    assert list(found.obs["scamac_cluster"].cat.categories) == list("0123456")
    np.testing.assert_array_equal(found.obsm["scamac_membership"].argmax(axis=1), codes(found.obs["scamac_cluster"]))
    np.testing.assert_array_equal(found.obsm["X_scAMAC"], predicted(tiny_adata).obsm["X_scAMAC"])
    assert found.uns["scamac"]["n_clusters"] == 7
    assert not found.uns["scamac"]["is_count_estimated"]  # it was said
    assert found.uns["scamac_details"]["centers"].shape == (7, 8)


def test_a_height_stands_for_the_number_of_clusters_below_it(tiny_adata: ad.AnnData) -> None:
    model = with_tree(fitted_model())
    assert model.tree is not None
    height = float(model.tree.merges[-6, 2])
    k = model.tree.count_at(height)
    by_height, by_count = predicted(tiny_adata, cut=height), predicted(tiny_adata, n_clusters=k)
    assert (by_height.obs["scamac_cluster"] == by_count.obs["scamac_cluster"]).all()
    assert predicted(tiny_adata, cut=1.0).obs["scamac_cluster"].nunique() == 1


@pytest.mark.parametrize("out", [None, "out.zarr", "out.h5ad"])
def test_levels_are_columns_nested_in_cells(tiny_adata: ad.AnnData, tmp_path: Path, out: str | None) -> None:
    plain = predicted(tiny_adata)
    found = predicted(tiny_adata, None if out is None else tmp_path / out, levels=(2, 20, 8))
    assert (found.obs["scamac_cluster"] == plain.obs["scamac_cluster"]).all()  # whatever else is asked for
    names = ["scamac_cluster_2", "scamac_cluster", "scamac_cluster_8", "scamac_cluster_20"]
    for name, k in zip(names, (2, 3, 8, 20), strict=True):
        assert list(found.obs[name].cat.categories) == list(map(str, range(k)))
    for coarse, fine in pairwise(names):
        above = found.obs.groupby(fine, observed=True)[coarse]
        assert (above.nunique() == 1).all()
        assert (np.diff(above.first().cat.codes) >= 0).all()  # neighbours have neighbouring numbers
    assert found.obsm["scamac_membership"].shape == (300, 3)


def test_a_cell_goes_to_the_nearest_of_the_finer_clusters_that_lie_in_its_own(tiny_adata: ad.AnnData) -> None:
    model = with_tree(fitted_model())
    found = predicted(tiny_adata, levels=(12,))
    assert model.tree is not None
    centers = recut(model, PredictOptions(n_clusters=12)).clusters.centers.numpy()
    parents = model.tree.coarser(12, 3)
    distance = np.linalg.norm(found.obsm["X_scAMAC"][:, None] - centers[None], axis=2)
    distance[parents[None] != codes(found.obs["scamac_cluster"])[:, None]] = np.inf
    np.testing.assert_array_equal(codes(found.obs["scamac_cluster_12"]), distance.argmin(axis=1))


def test_a_level_may_be_that_of_the_clusters_or_beside_another_cut(tiny_adata: ad.AnnData) -> None:
    found = predicted(tiny_adata, n_clusters=6, levels=(6, 3))
    assert (found.obs["scamac_cluster_6"] == found.obs["scamac_cluster"]).all()
    assert found.obs["scamac_cluster"].cat.categories.size == 6
    assert found.obs["scamac_cluster_3"].cat.categories.size == 3


def test_columns_of_levels_before_are_replaced(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    tiny_adata.obs["scamac_cluster_2"] = "old"
    for out in (None, tmp_path / "out.zarr"):
        assert set(predicted(tiny_adata, out, levels=(2,)).obs["scamac_cluster_2"]) <= {"0", "1"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"n_clusters": 0}, "at least 1"),
    "less than none": ({"n_clusters": -2}, "at least 1"),
    "a fraction": ({"n_clusters": 2.5}, "whole number"),
    "true": ({"n_clusters": True}, "whole number"),
    "both": ({"n_clusters": 4, "cut": 0.5}, "give one of them"),
    "a height above all": ({"cut": 1.2}, "from 0 to 1"),
    "a height below all": ({"cut": -0.1}, "from 0 to 1"),
    "a height that is no number": ({"cut": float("nan")}, "from 0 to 1"),
    "a height of text": ({"cut": "0.5"}, "from 0 to 1"),
    "a level of none": ({"levels": (5, 0)}, "at least 1"),
    "a level twice": ({"levels": (5, 5)}, "once"),
    "a level with a fraction": ({"levels": (5.5,)}, "whole number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_cuts_that_no_tree_has_are_refused(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        PredictOptions(**options)


@pytest.mark.parametrize("options", [{"n_clusters": 41}, {"levels": (2, 41)}])
def test_more_clusters_than_landmarks_are_refused_before_any_work(
    tiny_adata: ad.AnnData, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"41.*has 40 landmarks; ask for at most as many"):
        predicted(tiny_adata, tmp_path / "out.zarr", **options)
    assert list(tmp_path.iterdir()) == []
    assert predicted(tiny_adata, levels=(40,)).obs["scamac_cluster_40"].cat.categories.size == 40


@pytest.mark.parametrize("options", [{"n_clusters": 4}, {"cut": 0.5}, {"levels": (5,)}, {"n_clusters": 3}])
def test_a_model_without_a_tree_says_so(tiny_adata: ad.AnnData, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="has no tree of its clusters"):
        predicted(tiny_adata, model=fitted_model(), **options)


def test_levels_are_named_in_a_text_or_a_list() -> None:
    assert counts_of("5, 20,") == counts_of([5, 20.0]) == counts_of(np.array([5, 20])) == (5, 20)
    assert counts_of("") == counts_of(()) == ()
    assert counts_of(7) == counts_of(np.int64(7)) == (7,)
    with pytest.raises(ConfigError, match="commas between them"):
        counts_of("5;20")


def test_a_prediction_of_another_cut_is_not_gone_on_with(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    assert "n_clusters" not in PredictOptions().to_plain()  # what was begun before there were cuts goes on
    out = tmp_path / "out.zarr"
    predicted(tiny_adata, out, n_clusters=5, levels=(2,))
    predicted(tiny_adata, out, n_clusters=5, levels=(2,), resume=True)
    for options, named in (
        ({"n_clusters": 6, "levels": (2,)}, r": n_clusters=6 \(it was 5\)"),
        ({"n_clusters": 5}, "levels"),
        ({"cut": 0.4, "levels": (2,)}, "cut"),
    ):
        with pytest.raises(ResumeError, match=named):
            predicted(tiny_adata, out, resume=True, **options)


@pytest.mark.slow
def test_a_dendrogram_is_there_for_scanpys_plots(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    sc = pytest.importorskip("scanpy")
    pytest.importorskip("matplotlib").use("agg")
    for out in (None, tmp_path / "out.h5ad"):
        found = predicted(tiny_adata, out, n_clusters=4)
        assert found.uns[DENDROGRAM_KEY]["linkage"].shape == (3, 4)
        sc.pl.dendrogram(found, "scamac_cluster", show=False)
        np.testing.assert_array_equal(found.uns[DENDROGRAM_KEY]["categories_ordered"], list("0123"))
        found = ad.AnnData(tiny_adata.X, found.obs, uns=found.uns, var=tiny_adata.var)
        labels = pd.Categorical((np.arange(300) % 4).astype(str))
        found.obs["scamac_cluster"] = labels  # scanpy wants cells of every cluster
        sc.pl.dotplot(found, list(found.var_names[:3]), "scamac_cluster", dendrogram=True, show=False)


def test_a_model_of_one_cluster_or_without_a_tree_has_no_dendrogram(tiny_adata: ad.AnnData) -> None:
    assert DENDROGRAM_KEY not in predicted(tiny_adata, n_clusters=1).uns
    assert DENDROGRAM_KEY not in predicted(tiny_adata, model=fitted_model()).uns


def test_a_cut_of_a_corrected_model_is_in_its_corrected_latent(tiny_adata: ad.AnnData) -> None:
    tiny_adata.obs["donor"], tiny_adata.obs["chip"] = "ann", "10"
    model = with_tree(with_correction(fitted_model()))
    found = predicted(tiny_adata, model=model, n_clusters=5, levels=(2, 9))
    assert found.obsm["scamac_membership"].shape == (300, 5)
    assert levels_of(model, PredictOptions(levels=(9,))).centers is not None
