"""How well batches mix, by way of `evaluate`: sums over all cells, one sample, and warnings that say what to do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from scamac_scale import evaluate, evaluation
from scamac_scale.errors import InputError
from scamac_scale.evaluation import draw_sample, shuffle_within
from scamac_scale.ingestion import obsm
from tests.support.formats import write_zarr
from tests.support.mixing import result

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad


def test_mixed_batches_score_as_mixed_and_warn_of_nothing() -> None:
    found = evaluate(result(), "cell_type", batch_key="donor")
    assert found["ari"] == 1.0
    assert (found["n_batches"], found["n_sampled"], found["n_sampled_labelled"]) == (3, 600, 600)
    assert found["ilisi"] > 2.6  # of 3; neighbours are a sample
    assert found["ilisi_scaled"] == pytest.approx((found["ilisi"] - 1) / 2)
    assert found["clisi"] == pytest.approx(1.0)
    assert found["clisi_scaled"] == pytest.approx(1.0)
    assert found["graph_connectivity"] == 1.0
    assert found["kbet_acceptance"] > 0.9
    assert found["variance_between_batches"] < 0.01
    assert found["variance_between_batches_in_cluster"] < 0.02
    assert found["neighbors"] == {"lisi": 90, "perplexity": 30, "kbet": 50, "graph": 15, "by": "scikit-learn"}
    assert [row["n_cells"] for row in found["batches"]] == [200, 200, 200]
    assert found["warnings"] == []


def test_a_batch_that_lies_apart_is_named_with_what_to_do() -> None:
    found = evaluate(result(shift=50.0), "cell_type", batch_key="donor")
    assert found["kbet_acceptance"] < 0.05
    assert found["variance_between_batches"] == pytest.approx(1 / 3, abs=0.02)  # the types are as far apart
    assert found["variance_between_batches_in_cluster"] > 0.99
    [warning] = found["warnings"]
    assert warning.startswith(
        "batch 'd2' hardly mixes: 100.0% of the neighbours of its cells are of the same batch, 33."
    )
    assert "each label by itself (mean LISI 1.00 of 3 batches)" in warning
    assert warning.endswith("train with --batch-key donor, or, if that was done, raise --correction.theta.")
    d2 = found["batches"][2]
    assert d2["batch"] == "d2"
    assert d2["own_neighbors"] == d2["own_excess"] == 1.0
    assert d2["mean_lisi"] == pytest.approx(1.0)


def test_a_small_batch_that_lies_apart_is_named() -> None:
    """It has fewer cells than LISI has neighbours."""
    adata = result()
    is_own = np.arange(600) < 30
    adata.obs["donor"] = np.where(is_own, "small", adata.obs["donor"].astype(str))
    adata.obsm["X_scAMAC"][is_own, 2] += 50.0
    assert [line.split(" hardly")[0] for line in evaluate(adata, batch_key="donor")["warnings"]] == ["batch 'small'"]


def test_clusters_and_labels_of_one_batch_are_named() -> None:
    adata = result()
    is_own = (adata.obs["donor"] == "d1") & (np.arange(600) < 240)
    adata.obs["scamac_cluster"] = np.where(is_own, "7", adata.obs["scamac_cluster"].astype(str))
    adata.obs["cell_type"] = np.where(is_own, "NK cell", adata.obs["cell_type"])
    cluster, label = evaluate(adata, "cell_type", batch_key="donor")["warnings"]
    head = "lies in one batch: 80 of its 80 cells (100.0%) are of batch 'd1', which has 33.3% of all cells;"
    assert cluster.startswith(f"cluster '7' {head} if other batches have such cells, train with --batch-key donor")
    assert label.startswith(f"label 'NK cell' {head} mixing cannot be judged by it")


@pytest.mark.parametrize(("n_others", "is_named"), [(2, True), (8, False)])
def test_a_cluster_with_a_few_cells_of_others_lies_in_one_batch_still(n_others: int, is_named: bool) -> None:
    """A third of the 100 cells would be of the batch: 5 % of the other 67 may be left, 3 cells."""
    adata = result()
    donors = np.flatnonzero(adata.obs["donor"] == "d1")[: 100 - n_others]
    others = np.flatnonzero(adata.obs["donor"] == "d2")[:n_others]
    cluster = np.zeros(600, dtype=int)
    cluster[[*donors, *others]] = 1
    adata.obs["scamac_cluster"] = cluster
    assert any("cluster '1'" in line for line in evaluate(adata, batch_key="donor")["warnings"]) == is_named


def test_a_cluster_of_few_cells_says_nothing() -> None:
    adata = result()
    adata.obs["scamac_cluster"] = np.where(np.isin(np.arange(600), (0, 1, 6)), "small", "large")
    assert len(set(adata.obs["donor"].iloc[[0, 1, 6]])) == 1
    assert evaluate(adata, batch_key="donor")["warnings"] == []


def test_several_columns_count_jointly() -> None:
    found = evaluate(result(), batch_key="donor, chip")
    assert found["batch_key"] == "donor,chip"
    assert [row["batch"] for row in found["batches"]] == [
        f"d{donor}, {chip}" for donor in range(3) for chip in (10, 11)
    ]
    assert sum(row["n_cells"] for row in found["batches"]) == 600


SHARES = ("variance_between_batches", "variance_between_batches_in_cluster")


def test_of_very_many_crossed_batches_the_largest_are_counted_and_the_others_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adata = result()
    draw = np.random.default_rng(0)
    adata.obs["chip"], adata.obs["day"] = draw.integers(0, 20, 600) ** 2 // 40, draw.integers(0, 20, 600)
    crossed = adata.obs["chip"].astype(str) + ", " + adata.obs["day"].astype(str)
    n_kept = crossed.value_counts()[:50].sum()
    monkeypatch.setattr(evaluation, "MOST_JOINT", 50)
    found = evaluate(adata, "cell_type", batch_key="chip,day")
    assert found["n_batches"] == len(found["batches"]) == 50
    assert sum(row["n_cells"] for row in found["batches"]) == found["n_sampled"] == n_kept
    assert f"the 50 with the most cells are counted, the others, with {600 - n_kept} cells" in found["warnings"][0]
    own = adata[crossed.isin([row["batch"] for row in found["batches"]])].copy()
    alone = evaluate(own, "cell_type", batch_key="chip,day")
    assert [alone[name] for name in SHARES] == pytest.approx([found[name] for name in SHARES])
    assert alone["ilisi"] == found["ilisi"]


def test_without_a_label_there_are_no_scores_by_label() -> None:
    found = evaluate(result(), batch_key="donor")
    assert not found.keys() & {"ari", "nmi", "clisi", "graph_connectivity", "n_sampled_labelled"}
    assert found["ilisi"] == evaluate(result(), "cell_type", batch_key="donor")["ilisi"]


def test_cells_without_a_label_are_left_out_of_scores_by_label_and_counted() -> None:
    adata = result()
    adata.obs.loc[adata.obs_names[::3], "cell_type"] = None
    found = evaluate(adata, "cell_type", batch_key="donor")
    kept = evaluate(adata[adata.obs["cell_type"].notna()].copy(), "cell_type", batch_key="chip")
    assert (found["n_unlabelled"], found["n_sampled"], found["n_sampled_labelled"]) == (200, 600, 400)
    for score in ("clisi", "clisi_scaled", "graph_connectivity"):
        assert found[score] == kept[score]
    assert found["ilisi"] == evaluate(adata, batch_key="donor")["ilisi"]


def test_too_few_labels_are_told_and_not_scored() -> None:
    adata = result()
    adata.obs["cell_type"] = np.where(np.arange(600) < 5, "B cell", "")
    found = evaluate(adata, "cell_type", batch_key="donor")
    assert found["clisi"] is None
    assert found["graph_connectivity"] is None
    assert "only 5 cells of the sample have a label" in found["warnings"][-1]


def test_one_label_has_no_scaled_clisi() -> None:
    adata = result()
    adata.obs["cell_type"] = "cell"
    found = evaluate(adata, "cell_type", batch_key="donor")
    assert (found["clisi"], found["clisi_scaled"]) == (pytest.approx(1.0), None)


def test_the_basis_may_be_another() -> None:
    adata = result(shift=50.0)
    adata.obsm["X_corrected"] = result().obsm["X_scAMAC"]
    before, after = (evaluate(adata, batch_key="donor", basis=basis) for basis in ("X_scAMAC", "X_corrected"))
    assert (after["basis"], after["warnings"]) == ("X_corrected", [])
    assert before["ilisi"] < after["ilisi"]


@pytest.mark.parametrize("kind", ["zarr", "h5ad"])
def test_files_read_in_blocks_give_what_memory_gives(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = result(shift=3.0)
    path = tmp_path / f"out.{kind}"
    if kind == "zarr":
        write_zarr(adata, path)
    else:
        adata.write_h5ad(path)
    expected = evaluate(adata, "cell_type", batch_key="donor")
    monkeypatch.setattr(obsm, "BLOCK_VALUES", 100)
    found = evaluate(path, "cell_type", batch_key="donor")
    for share in ("variance_between_batches", "variance_between_batches_in_cluster"):
        assert found.pop(share) == pytest.approx(expected.pop(share), rel=1e-12)  # summed in another order
    assert found == expected


def test_variance_is_of_all_cells_and_neighbours_of_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = result(shift=3.0)
    expected = evaluate(adata, "cell_type", batch_key="donor")
    monkeypatch.setattr(evaluation, "SAMPLE_CELLS", 120)
    found = evaluate(adata, "cell_type", batch_key="donor")
    assert (found["n_sampled"], found["sample_seed"]) == (120, 0)
    assert found["variance_between_batches"] == expected["variance_between_batches"]
    assert found["ilisi"] != expected["ilisi"]
    assert [row["n_cells"] for row in found["batches"]] == [200, 200, 200]
    latent = adata.obsm["X_scAMAC"].astype(np.float64)
    means = pd.DataFrame(latent).groupby(adata.obs["donor"].to_numpy()).transform("mean").to_numpy()
    between = ((means - latent.mean(axis=0)) ** 2).sum() / ((latent - latent.mean(axis=0)) ** 2).sum()
    assert found["variance_between_batches"] == pytest.approx(between)


def test_what_mixing_could_reach_is_told_beside_it() -> None:
    mixed, apart = (evaluate(result(shift=shift), "cell_type", batch_key="donor") for shift in (0.0, 50.0))
    assert mixed["ilisi_if_mixed"] == pytest.approx(mixed["ilisi"], rel=0.05)  # another draw of the same chance
    assert apart["ilisi"] < 2.1  # two of the three still mix
    assert apart["ilisi_if_mixed"] > 2.5


def test_batches_are_dealt_out_anew_within_groups_only() -> None:
    codes, groups = np.random.default_rng(0).integers(0, 5, 300), np.arange(300) % 3
    dealt = shuffle_within(codes, groups)
    assert (dealt != codes).mean() > 0.5
    for group in range(3):
        np.testing.assert_array_equal(np.bincount(dealt[groups == group]), np.bincount(codes[groups == group]))


def test_a_sample_has_every_stratum_in_proportion() -> None:
    strata = np.repeat([0, 1, 2, 3], [700, 250, 49, 1])
    np.random.default_rng(0).shuffle(strata)
    rows = draw_sample(strata, 100)
    assert len(np.unique(rows)) == 100
    assert (np.diff(rows) > 0).all()
    np.testing.assert_allclose(np.bincount(strata[rows]), [69, 25, 5, 1], atol=1)
    np.testing.assert_array_equal(rows, draw_sample(strata, 100))
    assert (rows != draw_sample(strata, 100, seed=1)).any()
    np.testing.assert_array_equal(draw_sample(strata, 1000), np.arange(1000))
    assert len(draw_sample(np.arange(1000), 10)) == 10  # more strata than cells to draw


def test_results_are_plain_numbers() -> None:
    found = evaluate(result(shift=50.0), "cell_type", batch_key="donor")
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def spoiled(**columns: Any) -> ad.AnnData:
    adata = result()
    for name, values in columns.items():
        adata.obs[name] = values
    return adata


def with_nan() -> ad.AnnData:
    adata = result()
    adata.obsm["X_scAMAC"][17, 2] = np.nan
    return adata


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (result(), {}, "neither a label nor a batch key"),
        (result(), {"batch_key": " , "}, "neither a label nor a batch key"),
        (result(), {"batch_key": "dnor"}, r"no column 'dnor' \(batch key\); it has cell_type, donor"),
        (result(), {"batch_key": "donor", "label": "type"}, "no column 'type'"),
        (result(), {"batch_key": "donor", "key": "leiden"}, "no column 'leiden'"),
        (result(), {"batch_key": "donor", "basis": "X_pca"}, "known are X_scAMAC"),
        (spoiled(donor="d0"), {"batch_key": "donor"}, "all 600 cells are of one batch .donor=d0"),
        (spoiled(scamac_cluster=[None, *"0" * 599]), {"batch_key": "donor"}, "1 cells have no cluster"),
        (result(n_cells=10), {"batch_key": "donor"}, "at least 12"),
        (with_nan(), {"batch_key": "donor"}, "not finite, first at cell number 17"),
    ],
)
def test_bad_input_gets_one_clear_message(data: ad.AnnData, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        evaluate(data, **options)


class TestCellsWithoutALabel:
    @pytest.mark.parametrize("text", ["nan", "NaN", "NA", "N/A", "None", "<NA>", "null", " nan ", ""])
    @pytest.mark.parametrize("kind", [object, "category", "string"])
    def test_the_text_of_a_missing_value_is_no_label(self, text: str, kind: Any) -> None:
        adata = result()
        labels = adata.obs["cell_type"].astype(object)
        labels.iloc[:50] = text
        adata.obs["cell_type"] = labels.astype(kind)
        found = evaluate(adata, "cell_type")
        assert (found["ari"], found["n_unlabelled"], found["n_labels"]) == (1.0, 50, 2)
        said = [f"50 cells have the text {text.strip()!r} in 'cell_type'; they count as unlabelled."]
        assert found.get("warnings", []) == (said if text else [])
        mixed = evaluate(adata, "cell_type", batch_key="donor")
        assert mixed["n_sampled_labelled"] == 550
        assert mixed["warnings"] == (said if text else [])

    @pytest.mark.parametrize("text", ["Unassigned", "unknown", "Unlabelled", "undefined", "Doublets", "unknown_3"])
    def test_a_label_that_reads_like_none_is_named_and_left_out_on_request(self, text: str) -> None:
        adata = result()
        labels = adata.obs["cell_type"].astype(object)
        labels.iloc[:50] = text
        adata.obs["cell_type"] = pd.Categorical(labels)
        found = evaluate(adata, "cell_type")
        assert (found["n_unlabelled"], found["n_labels"]) == (0, 3)
        [warning] = found["warnings"]
        assert warning.startswith(f"50 cells have the label {text!r} in 'cell_type', which is scored as a type;")
        assert f"--unlabelled {text} " in warning
        for names in (text, [text], f" {text} ,{text}"):
            left = evaluate(adata, "cell_type", unlabelled=names)
            assert left["n_unlabelled"] >= 50
            assert left["ari"] == 1.0
            assert "warnings" not in left
        assert list(adata.obs["cell_type"][:2]) == [text] * 2  # what was given stays

    def test_a_name_that_no_cell_has_is_refused(self) -> None:
        with pytest.raises(
            InputError, match=r"no cell has the label 'unknwon' in 'cell_type' \(unlabelled\); labels are"
        ):
            evaluate(result(), "cell_type", unlabelled="unknwon")
        with pytest.raises(InputError, match="no label column"):
            evaluate(result(), batch_key="donor", unlabelled="unknown")

    def test_numbers_and_missing_values_are_labels_as_before(self) -> None:
        adata = result()
        codes = pd.Categorical(adata.obs["cell_type"]).codes.astype(float)
        codes[:40] = np.nan
        adata.obs["number"] = codes
        found = evaluate(adata, "number")
        assert (found["ari"], found["n_unlabelled"]) == (1.0, 40)
        assert "warnings" not in found
