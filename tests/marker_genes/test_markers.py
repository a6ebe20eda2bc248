"""The table of markers: that of a loop in float64 and of scanpy, whatever the input lies in and whoever reads it."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import zarr
from scipy import sparse
from sklearn.metrics import roc_auc_score

from scamac_scale import IngestConfig, ScAMAC, inspect, markers, tl
from scamac_scale.config import MarkerTest
from scamac_scale.errors import ConfigError, InputError
from scamac_scale.marker_genes import find, options
from scamac_scale.marker_genes.auc import areas, draw_cells
from scamac_scale.marker_genes.ranking import COUNTED, adjusted
from tests.support.fitted import fitted_model
from tests.support.markers import (
    N_CELLS,
    N_GENES,
    Case,
    counts_of,
    make_case,
    normalised,
    reference_table,
    space_of,
    write_result,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.support.cluster import Cluster

NUMBERS = ("scores", "pvals", "logfoldchanges", "auc")
FLOAT32 = 3e-6
"""Values are rounded to float32, as the network sees them, and so are scores and fold changes: some parts in 10^7 each."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("markers"))


@pytest.fixture(scope="module")
def table(case: Case) -> Any:
    """``uns["rank_genes_groups"]`` at the defaults, read again."""
    told = markers(case.out, case.atlas)
    assert [row["cells"] for row in told["groups"]] == np.unique(case.labels, return_counts=True)[1].tolist()
    return ad.read_zarr(case.out).uns["rank_genes_groups"]


def by_gene(table: Any, group: str, column: str, names: Any) -> NDArray[np.float64]:
    """A column of a group in the order of the genes."""
    place = {name: at for at, name in enumerate(table["names"][group])}
    return np.array([float(table[column][group][place[name]]) for name in names])


def check(table: Any, case: Case, labels: Any, method: str = "t-test", reference: str = "rest") -> None:
    """Compare all groups of a table with the loop."""
    for group in table["names"].dtype.names:
        expected = reference_table(case.values, labels, group, method, reference)
        for column in ("scores", "pvals", "logfoldchanges"):
            found = by_gene(table, group, column, case.raw.var_names)
            np.testing.assert_allclose(found, expected[column], rtol=FLOAT32, atol=FLOAT32, err_msg=column)
        np.testing.assert_allclose(
            by_gene(table, group, "pvals_adj", case.raw.var_names), adjusted(expected["pvals"]), rtol=1e-4
        )
        np.testing.assert_array_equal(table["pts"][group], expected["pts"])
        if reference == "rest":
            np.testing.assert_array_equal(table["pts_rest"][group], expected["pts_rest"])
        assert (np.diff(table["scores"][group]) <= 0).all()


def test_all_genes_are_those_of_a_loop_in_float64(case: Case, table: Any) -> None:
    assert table["names"].shape == (N_GENES,)
    assert table["names"].dtype.names == ("0", "1", "2")
    assert list(table["pts"].index) == list(case.raw.var_names)
    check(table, case, case.labels)


@pytest.mark.parametrize(
    ("asked", "column"),
    [
        ({"method": "t-test_overestim_var"}, "scamac_cluster"),
        ({"reference": "1"}, "scamac_cluster"),
        ({"reference": "2", "groupby": "number"}, "number"),
    ],
)
def test_other_tests_references_and_columns(case: Case, asked: dict[str, Any], column: str) -> None:
    found = ad.read_zarr(Path(markers(case.out, case.atlas, **asked)["out"])).uns["rank_genes_groups"]
    labels = case.raw.obs[column].astype(str).to_numpy()
    assert found["params"]["groupby"] == column
    assert ("pts_rest" in found) == ("reference" not in asked)
    check(found, case, labels, asked.get("method", "t-test"), asked.get("reference", "rest"))


def test_cells_without_a_group_are_in_the_rest_and_names_may_be_any_text(case: Case) -> None:
    markers(case.out, case.atlas, groupby="kind")
    found = ad.read_zarr(case.out).uns["rank_genes_groups"]
    labels = case.raw.obs["kind"].astype(str).to_numpy()
    assert set(found["names"].dtype.names) == {"a", "Ä/b"}
    assert set(found["pts"].columns) == {"a", "Ä/b"}
    assert len(sc.get.rank_genes_groups_df(ad.read_zarr(case.out), "Ä/b")) == N_GENES
    check(found, case, labels)


@pytest.mark.parametrize("reference", ["rest", "1"])
def test_auc_of_the_best_genes_is_that_of_scikit_learn_on_the_sample(
    case: Case, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options.MarkerOptions(auc_cells=90, auc_genes=7, reference=reference, seed=3)
    told = find.find_markers(case.out, case.atlas, asked, IngestConfig(block_cells=64))
    found = ad.read_zarr(case.out).uns["rank_genes_groups"]
    codes = case.raw.obs["number"].to_numpy()
    sample = draw_cells(codes, 90, 3)
    assert len(sample) == found["params"]["auc_cells"] == 90
    assert [row["auc_cells"] for row in told["groups"]] == [
        int((codes[sample] == int(row["group"])).sum()) for row in told["groups"]
    ]
    for group in found["names"].dtype.names:
        seen = sample[np.isin(case.labels[sample], [group, reference])] if reference != "rest" else sample
        assert np.isnan(found["auc"][group][7:]).all()
        for gene, auc in list(zip(found["names"][group], found["auc"][group], strict=True))[:7]:
            values = case.values[seen, case.raw.var_names.get_loc(gene)].astype(np.float32)
            assert auc == pytest.approx(roc_auc_score(case.labels[seen] == group, values), abs=1e-7)


def test_areas_count_ties_by_half_also_among_zeros() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4, (60, 5)).astype(np.float32)
    codes = rng.choice(4, 60)  # the last are of no group
    columns = sparse.csc_matrix(values)
    found = areas((columns.indptr.astype(np.int64), columns.indices, columns.data), codes, 3)
    expected = [[roc_auc_score(codes == group, values[:, gene]) for gene in range(5)] for group in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_sample_has_a_cell_of_every_group_and_is_the_same_for_a_seed() -> None:
    codes = np.zeros(10_000, np.int64)
    codes[4321], codes[99] = 1, 2
    rows = draw_cells(codes, 50, 0)
    assert len(rows) == 50
    assert {1, 2} <= set(codes[rows])
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, draw_cells(codes, 50, 0))
    assert (rows != draw_cells(codes, 50, 1)).any()
    assert len(draw_cells(np.arange(100), 50, 0)) == 50  # more groups than places


def test_the_tests_are_those_that_the_command_knows() -> None:
    assert set(COUNTED) == set(get_args(MarkerTest))


def test_p_values_are_adjusted_as_statsmodels_does() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    pvals = np.array([0.5, 0.01, 1.0, 0.01, 1e-300, 0.04, 1.0])
    np.testing.assert_allclose(adjusted(pvals), multitest.multipletests(pvals, method="fdr_bh")[1], rtol=1e-14)


def test_fewer_cells_in_a_block_change_no_more_than_rounding_and_threads_nothing(case: Case, table: Any) -> None:
    for block in (7, 100):
        markers(case.out, case.atlas, ingest=IngestConfig(block_cells=block))
        found = ad.read_zarr(case.out).uns["rank_genes_groups"]
        for group in ("0", "1", "2"):
            np.testing.assert_allclose(found["scores"][group], table["scores"][group], rtol=1e-6)
            np.testing.assert_allclose(found["auc"][group], table["auc"][group], rtol=0)


@pytest.mark.slow
def test_workers_give_the_same_bits(case: Case, table: Any, cluster: Cluster) -> None:
    markers(case.out, case.atlas, dask=cluster.address)
    found = ad.read_zarr(case.out).uns["rank_genes_groups"]
    for column in ("names", *NUMBERS):
        assert found[column].tobytes() == table[column].tobytes() or column == "names"
        np.testing.assert_array_equal(found[column], table[column])


def test_several_dense_files_are_one_input_with_the_genes_that_count(case: Case, tmp_path: Path) -> None:
    first, second = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    dense = case.raw.copy()
    dense.X = dense.X.toarray()
    dense[:100].copy().write_h5ad(first)
    left = [at for at in range(N_GENES) if at not in (1, 4)]  # without a gene that counts, and one that does not
    dense[100:, left].copy().write_h5ad(second)
    told = markers(case.out, [first, second], accept="totals")
    found = ad.read_zarr(case.out).uns["rank_genes_groups"]
    assert told["n_genes"] == N_GENES - 1
    counts = case.raw.X.toarray()
    counts[100:, 1] = 0
    values = normalised(ad.AnnData(sparse.csr_matrix(counts), var=case.raw.var), space_of(case.raw))
    expected = reference_table(values, case.labels, "1", "t-test")["scores"]
    names = case.raw.var_names.delete(4)
    np.testing.assert_allclose(by_gene(found, "1", "scores", names), np.delete(expected, 4), rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.slow
def test_an_h5ad_has_the_same_table_and_all_that_it_had(case: Case, table: Any, tmp_path: Path) -> None:
    out = write_result(tmp_path / "out.h5ad", case.raw, space_of(case.raw))
    before = ad.read_h5ad(out)
    before.uns["rank_genes_groups"] = {"old": 1}
    before.uns["mine"] = "kept"
    before.write_h5ad(out)
    out.chmod(0o640)
    markers(out, case.atlas)
    found = ad.read_h5ad(out)
    assert out.stat().st_mode & 0o777 == 0o640
    np.testing.assert_array_equal(found.obsm["X_scAMAC"], before.obsm["X_scAMAC"])
    pd.testing.assert_frame_equal(found.obs, before.obs)
    np.testing.assert_array_equal(found.uns["scamac_details"]["genes"], before.uns["scamac_details"]["genes"])
    assert found.uns["mine"] == "kept"
    assert set(found.uns["rank_genes_groups"]) == set(table)
    for column in ("names", *NUMBERS, "pvals_adj"):
        np.testing.assert_array_equal(found.uns["rank_genes_groups"][column], table[column])
        assert found.uns["rank_genes_groups"][column].dtype == table[column].dtype


def test_logarithms_are_taken_as_they_are_in_their_base(tmp_path: Path) -> None:
    raw = counts_of()
    space = space_of(raw)
    logs = raw.copy()
    logs.X = sparse.csr_matrix(normalised(raw, space) / np.log(2), dtype=np.float32)
    logs.write_h5ad(tmp_path / "logs.h5ad")
    plain = space.to_dict() | {
        "kind": "log",
        "target_sum": None,
        "values": {"seen": "log", "base": 2.0, "total": None, "is_sure": True, "means": []},
    }
    out = write_result(tmp_path / "out.zarr", raw, type(space).from_dict(plain))
    markers(out, tmp_path / "logs.h5ad")
    found = ad.read_zarr(out).uns["rank_genes_groups"]
    expected = reference_table(normalised(raw, space), raw.obs["scamac_cluster"].astype(str).to_numpy(), "0", "t-test")
    np.testing.assert_allclose(by_gene(found, "0", "scores", raw.var_names), expected["scores"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        by_gene(found, "0", "logfoldchanges", raw.var_names), expected["logfoldchanges"], rtol=1e-5, atol=1e-5
    )


def test_the_csv_has_the_columns_of_scanpy_and_the_rows_that_were_asked_for(case: Case, tmp_path: Path) -> None:
    told = markers(case.out, case.atlas, n_genes=5, csv=tmp_path / "table.csv")
    frame = pd.read_csv(told["csv"], dtype={"group": str})
    found = sc.get.rank_genes_groups_df(ad.read_zarr(case.out), None)
    assert list(frame.columns) == [*found.columns, "auc"]
    assert len(frame) == 15
    pd.testing.assert_frame_equal(
        frame.drop(columns=["auc", "group"]), found.drop(columns="group"), check_dtype=False, rtol=1e-6
    )
    assert frame["group"].tolist() == found["group"].astype(str).tolist()
    assert frame["auc"].between(0, 1).all()


def test_scanpy_draws_the_markers_of_a_result(case: Case, table: Any) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    out = ad.read_zarr(case.out)
    cells = ad.AnnData(case.values, out.obs, case.raw.var)
    cells.uns["rank_genes_groups"] = table
    plot = sc.pl.rank_genes_groups_dotplot(cells, n_genes=3, return_fig=True)
    assert plot.dot_color_df.shape == (3, 9)
    sc.pl.rank_genes_groups(cells, n_genes=3, show=False)
    pyplot.close("all")


def test_an_anndata_in_memory_gets_the_same_table(case: Case, table: Any) -> None:
    adata = counts_of()
    with pytest.raises(InputError, match=r"uns does not tell how values are normalised; call tl.scamac"):
        tl.markers(adata)
    adata.uns["scamac"] = ad.read_zarr(case.out).uns["scamac_details"]  # where an earlier version had it
    adata.layers["counts"] = adata.X
    adata.X = sparse.csr_matrix(case.values)
    tl.markers(adata, layer="counts")
    for column in ("names", *NUMBERS):
        np.testing.assert_array_equal(adata.uns["rank_genes_groups"][column], table[column])
    assert len(sc.get.rank_genes_groups_df(adata, "1")) == N_GENES


@pytest.mark.slow
def test_a_result_of_predict_tells_how_values_are_normalised_and_an_old_one_takes_its_run(
    tiny_atlas: Path, tmp_path: Path
) -> None:
    from scamac_scale.fitted import save_model

    (tmp_path / "run").mkdir()
    model = fitted_model(0)
    save_model(model, tmp_path / "run" / "model")
    out = Path(ScAMAC.load(tmp_path / "run" / "model").predict(tiny_atlas, tmp_path / "out.zarr"))
    assert json.loads(ad.read_zarr(out).uns["scamac_details"]["gene_space"]) == json.loads(
        json.dumps(model.genes.to_dict())
    )
    markers(out, tiny_atlas, groupby="cell_type")
    new = ad.read_zarr(out).uns["rank_genes_groups"]
    assert inspect(out, verify=True)["n_cells"] == 300
    told = zarr.open_group(out / "uns" / "scamac_details", mode="r+")
    del told["gene_space"]
    with pytest.raises(InputError, match=r"does not tell how values are normalised.*--run"):
        markers(out, tiny_atlas, groupby="cell_type")
    markers(out, tiny_atlas, groupby="cell_type", run=tmp_path / "run")
    for column in NUMBERS:
        assert ad.read_zarr(out).uns["rank_genes_groups"][column].tobytes() == new[column].tobytes()
    genes = told["genes"][:]
    genes[0] = "other"
    told["genes"][:] = genes
    with pytest.raises(InputError, match=r"not a result of .*other genes"):
        markers(out, tiny_atlas, run=tmp_path / "run")


# ------------------------------------------------------------------ what is refused


def test_cells_that_are_others_or_in_another_order_are_refused(case: Case, tmp_path: Path) -> None:
    few, turned, renamed = (tmp_path / f"{name}.h5ad" for name in ("few", "turned", "renamed"))
    case.raw[:-1].copy().write_h5ad(few)
    case.raw[::-1].copy().write_h5ad(turned)
    other = case.raw.copy()
    other.obs_names = [*other.obs_names[:9], "stranger", *other.obs_names[10:]]
    other.write_h5ad(renamed)
    with pytest.raises(InputError, match=r"out.zarr has 240 cells, and the input 239; give what was predicted"):
        markers(case.out, few)
    with pytest.raises(InputError, match=r"the same in another order: number 0 .* 'cell0' there, and 'cell239' here"):
        markers(case.out, turned)
    with pytest.raises(InputError, match=r"others \(1 of 240\): number 9 .* 'cell9' there, and 'stranger' here"):
        markers(case.out, renamed)
    markers(case.out, case.atlas, ingest=IngestConfig(where="scamac_cluster in ['0', '1', '2']"))


def test_columns_and_names_that_mean_nothing_are_refused(case: Case) -> None:
    with pytest.raises(InputError, match=r"no column 'celltype' \(groupby\); it has scamac_cluster, kind, number"):
        markers(case.out, case.atlas, groupby="celltype")
    with pytest.raises(InputError, match=r"'7' \(reference\) is no value of 'scamac_cluster'; known are rest, 0, 1, 2"):
        markers(case.out, case.atlas, reference="7")
    with pytest.raises(ConfigError, match="t-test_overestim_var"):
        markers(case.out, case.atlas, method="wilcoxon")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_genes=0"):
        markers(case.out, case.atlas, n_genes=0)


def test_groups_of_one_cell_are_left_out_with_a_word_and_one_group_is_refused(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = case.raw.copy()
    codes = raw.obs["number"].to_numpy().copy()
    codes[0] = 3
    raw.obs["scamac_cluster"] = pd.Categorical.from_codes(codes, ["0", "1", "2", "3", "4"])
    raw.obs["all"] = "one"
    raw.obs["measured"] = np.linspace(0, 1, N_CELLS)
    out = write_result(tmp_path / "out.zarr", raw, space_of(raw))
    told = markers(out, case.atlas)
    assert told["left_out"] == ["3", "4"]
    assert "fewer than 2 cells have no variance and are left out: 3 (1 cells), 4 (0 cells)" in caplog.text
    found = ad.read_zarr(out).uns["rank_genes_groups"]
    check(found, case, raw.obs["scamac_cluster"].astype(str).to_numpy())
    with pytest.raises(InputError, match="has 1 groups of at least 2 cells, and no rest"):
        markers(out, case.atlas, groupby="all")
    with pytest.raises(InputError, match="'measured' holds measurements"):
        markers(out, case.atlas, groupby="measured")
    with pytest.raises(InputError, match="reference '3' has fewer than 2 cells"):
        markers(out, case.atlas, reference="3")


@pytest.mark.parametrize(("value", "told"), [(-1.0, "holds -1 for"), (np.nan, "holds nan for"), (2.5, "whole counts")])
def test_a_value_that_is_none_is_named_with_its_cell_and_gene(
    case: Case, tmp_path: Path, value: float, told: str
) -> None:
    raw = case.raw.copy()
    counts = raw.X.toarray()
    counts[200, 7] = value
    raw.X = sparse.csr_matrix(counts)
    raw.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(InputError, match=told) as caught:
        markers(case.out, tmp_path / "bad.h5ad", accept="totals")
    assert "gene7" in str(caught.value)
    assert "cell200" in str(caught.value)


def test_the_table_is_cut_where_it_would_be_large(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(find, "MOST_ROWS", 30)
    monkeypatch.setattr(find, "MOST_VALUES", 100)
    told = markers(case.out, case.atlas)
    assert told["auc_cells"] < 20
    assert "the best 10 of 40 genes of each of 3 groups" in caplog.text
    with Path(told["csv"]).open() as file:
        assert len(list(csv.reader(file))) == 31


# ------------------------------------------------------------------ real cells


@pytest.mark.skipif("SCAMAC_DATA" not in os.environ, reason="SCAMAC_DATA does not name the folder of labelled sets")
@pytest.mark.parametrize("method", ["t-test", pytest.param("t-test_overestim_var", marks=pytest.mark.slow)])
def test_markers_of_sorted_blood_cells_are_those_of_scanpy(method: Any, tmp_path: Path) -> None:
    raw = ad.read_h5ad(Path(os.environ["SCAMAC_DATA"]) / "zheng_facs3774.h5ad")
    raw.obs["scamac_cluster"] = raw.obs["cell_type"].astype("category")
    raw.obs["depth"] = 0
    totals = np.asarray(raw.X.sum(axis=1)).ravel()
    names = tuple(raw.var_names)
    space = type(space_of(raw))("counts", float(np.median(totals)), names, names[:100])
    out = write_result(tmp_path / "out.zarr", raw, space)
    markers(out, Path(os.environ["SCAMAC_DATA"]) / "zheng_facs3774.h5ad", method=method)
    found = ad.read_zarr(out).uns["rank_genes_groups"]
    sc.pp.normalize_total(raw)
    sc.pp.log1p(raw)
    sc.tl.rank_genes_groups(raw, "scamac_cluster", method=method, pts=True)
    expected = raw.uns["rank_genes_groups"]
    assert found["names"].dtype.names == expected["names"].dtype.names
    for group in expected["names"].dtype.names:
        for column in ("scores", "pvals", "logfoldchanges", "pvals_adj"):
            values = pd.Series(found[column][group], index=found["names"][group])[expected["names"][group]]
            np.testing.assert_allclose(values, expected[column][group], rtol=1e-5, atol=1e-5, err_msg=column)
        assert found["names"][group][:100].tolist() == expected["names"][group][:100].tolist()
    np.testing.assert_array_equal(found["pts"].loc[list(names)], expected["pts"].loc[list(names)])
    np.testing.assert_array_equal(found["pts_rest"].loc[list(names)], expected["pts_rest"].loc[list(names)])
