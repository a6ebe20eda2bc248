"""Labels of a reference carried over: the rule is that of a slow reference, what it promises holds, and bad columns are refused."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from scamac_scale import ScAMAC, tl
from scamac_scale.cli.main import main
from scamac_scale.errors import ConfigError, InputError, ResumeError, StoppedError
from scamac_scale.infer.labels import fit
from scamac_scale.infer.labels.column import read_labels
from scamac_scale.infer.labels.options import LabelOptions
from scamac_scale.infer.tech_batches import tell_levels
from scamac_scale.ops.calibration import (
    ScoreMap,
    best_map,
    best_temperature,
    fit_map,
    loss_of,
    plain_map,
    unknown_below,
)
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sources import open_source
from tests.support.donors import build_donors
from tests.support.fitted import fitted_model, with_correction
from tests.support.launch import run_ranks
from tests.support.prediction import digests, look_often, make_stores, model_of

if TYPE_CHECKING:
    from scamac_scale.fitted import FittedModel
    from tests.support.cluster import Cluster

N_CELLS = 2600
KEYS = ["scamac_label", "scamac_label_probability"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stores(tmp_path_factory.mktemp("data") / "stores", N_CELLS)


@pytest.fixture(scope="module")
def cells(stores: Path) -> ad.AnnData:
    """The cells in memory, with labels as people write them: some are missing, and `donor` tells three of their sources."""
    found = ad.read_zarr(stores / "atlas.zarr")
    kind = found.obs["cell_type"].astype(str)
    found.obs["kind"] = kind.where(np.arange(N_CELLS) % 10 > 0)
    found.obs["donor"] = np.array(["ann", "bob", "cat"])[np.arange(N_CELLS) % 3]
    return found


@pytest.fixture(scope="module")
def model(stores: Path) -> ScAMAC:
    """Random weights: the rule reads the input."""
    return by(model_of(stores / "ordered.zarr"))


def by(fitted: FittedModel) -> ScAMAC:
    found = ScAMAC(config=fitted.config)
    found._fitted = fitted
    return found


def rule_of(model: FittedModel, data: Any, label: str, world: World = ALONE, **options: Any) -> fit.LabelRule:
    asked = LabelOptions(label=label, **options)
    with open_source(data, model.genes) as source:
        tell_levels(model, source, None)
        column = read_labels(source.obs, asked, tuple(model.tech_levels), 0, "obs")
        return fit.fit_labels(model, source, column, asked.unknown, world)


def input_of(model: FittedModel, data: Any) -> np.ndarray:
    """(N, G) float64 input of all cells, one after the other."""
    with open_source(data, model.genes) as source:
        values = source.read(np.arange(source.n_cells))
        order = np.argsort(source.source_rows)
    dense = np.zeros((len(order), len(model.genes.chosen)))
    for row in range(len(order)):
        own = slice(values.indptr[row], values.indptr[row + 1])
        dense[row, values.indices[own]] = values.data[own]
    length = np.linalg.norm(dense, axis=1, keepdims=True)
    return dense[order] / np.where(length == 0, np.inf, length)


def slow_rule(x: np.ndarray, labels: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases by loops over classes, in float64."""
    names = np.unique(labels)
    within = np.zeros((x.shape[1], x.shape[1]))
    for name in names:
        off = x[labels == name] - x[labels == name].mean(axis=0)
        within += off.T @ off
    within /= len(x)
    within = (1 - shrinkage) * within + shrinkage * np.trace(within) / len(within) * np.eye(len(within))
    inverse = np.linalg.inv(within)
    means = [x[labels == name].mean(axis=0) for name in names]
    bias = [
        -mean @ inverse @ mean / 2 + np.log((labels == name).mean()) for name, mean in zip(names, means, strict=True)
    ]
    return np.stack([inverse @ mean for mean in means], axis=1), np.array(bias)


# ------------------------------------------------------------------ the rule


def test_the_rule_is_that_of_a_slow_reference(model: ScAMAC, cells: ad.AnnData) -> None:
    rule = rule_of(model.fitted, cells, "kind")
    has_label = cells.obs["kind"].notna().to_numpy()
    x, labels = input_of(model.fitted, cells)[has_label], cells.obs["kind"].to_numpy()[has_label].astype(str)
    weight, bias = slow_rule(x, labels, rule.report["shrinkage"])
    # the covariance is summed from float32 products of blocks
    np.testing.assert_allclose(rule.weight, weight, rtol=2e-3, atol=2e-3 * np.abs(weight).max())
    np.testing.assert_allclose(rule.bias, bias, rtol=2e-3)
    found = rule(torch.from_numpy(x[:700]).float())
    scores = x[:700] @ weight + bias
    label, (temperature, mix, shift) = scores.argmax(axis=1), rule.score_map
    z = temperature * (scores - scores.max(axis=1, keepdims=True))
    p = np.exp(z + z @ mix.numpy() + shift.numpy())
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found[:, 1], p[np.arange(700), label], atol=0.01)
    is_sure = (found[:, 1] >= rule.threshold).numpy()
    assert (found[:, 0].numpy()[is_sure] == label[is_sure]).mean() > 0.995


def test_sums_of_classes_are_those_of_loops(model: ScAMAC, cells: ad.AnnData) -> None:
    with open_source(cells, model.fitted.genes) as source:
        column = read_labels(source.obs, LabelOptions(label="kind", held_out="donor"), (), 0, "obs")
        sums = fit.sum_classes(model.fitted, source, column, ALONE)
    x = input_of(model.fitted, cells)
    for fold in range(column.n_folds):
        for code in range(len(column.names)):
            own = x[(column.folds == fold) & (column.codes == code)]
            assert sums.counts[fold, code] == len(own)
            # the input is float32
            np.testing.assert_allclose(sums.totals[fold, code], own.sum(axis=0), atol=1e-4)


def test_a_cell_gets_the_same_bits_whatever_comes_with_it(model: ScAMAC, cells: ad.AnnData) -> None:
    rule = rule_of(model.fitted, cells, "kind")
    x = torch.from_numpy(input_of(model.fitted, cells)[:1024]).float()
    whole = rule(x)
    order = torch.from_numpy(np.random.default_rng(0).permutation(1024))
    torch.testing.assert_close(rule(x[order[:33]]), whole[order[:33]], rtol=0, atol=0)
    torch.testing.assert_close(rule(x[order]), whole[order], rtol=0, atol=0)


def on_rank(world: World, store: Path) -> dict[str, Any]:
    rule = rule_of(model_of(store), store, "cell_type", world)
    return {
        "weight": rule.weight.numpy(),
        "bias": rule.bias.numpy(),
        "rest": (rule.score_map.shift.tolist(), rule.threshold, rule.report),
    }


@pytest.mark.ddp
@pytest.mark.slow
def test_ranks_find_the_same_bits(stores: Path, tmp_path: Path) -> None:
    one = on_rank(ALONE, stores / "ordered.zarr")
    for many in run_ranks(on_rank, 2, tmp_path / "ranks", stores / "ordered.zarr"):
        np.testing.assert_array_equal(many["weight"], one["weight"])
        np.testing.assert_array_equal(many["bias"], one["bias"])
        assert many["rest"] == one["rest"]


@pytest.mark.slow
def test_a_sample_and_few_genes_do_almost_as_well(
    model: ScAMAC, cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rule_of(model.fitted, cells, "kind").report
    monkeypatch.setattr(fit, "SAMPLE_CELLS", 600)
    monkeypatch.setattr(fit, "MAX_GENES", 20)
    some = rule_of(model.fitted, cells, "kind")
    assert (some.report["n_genes"], some.report["n_held_out"], len(some.weight)) == (20, 600, 20)
    assert some.report["n_cells"] == whole["n_cells"] == 2340
    assert some.report["held_out_accuracy"] > whole["held_out_accuracy"] - 0.05


def test_genes_are_chosen_that_tell_labels_apart() -> None:
    counts = torch.tensor([[50.0, 50.0]])
    means = torch.tensor([[[0.0, 5.0, 1.0], [0.0, 5.0, 3.0]]])
    squares = torch.tensor([300.0, 2700.0, 600.0])
    sums = fit.ClassSums(counts, means * 50, squares)
    assert fit.telling_genes(sums, 1).tolist() == [2]
    assert fit.telling_genes(sums, 3).tolist() == [0, 1, 2]


# ------------------------------------------------------------------ probabilities


def test_the_best_temperature_is_a_least_of_the_loss() -> None:
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(4000, 3, generator=draw, dtype=torch.float64) * 20
    classes = torch.multinomial(torch.softmax(scores * 0.1, dim=1), 1, generator=draw)[:, 0]
    best, loss = best_temperature(scores, classes)
    assert best == pytest.approx(0.1, rel=0.1)
    assert loss <= min(float(loss_of(scores * best * factor, classes)) for factor in (0.8, 1.25))


def test_a_map_learns_which_classes_are_taken_for_one_another() -> None:
    draw = torch.Generator().manual_seed(2)
    scores = torch.randn(6000, 3, generator=draw, dtype=torch.float64) * 3
    told = scores + torch.tensor([0.0, 1.5, 0.0])  # class 1 is more frequent than its scores say
    classes = torch.multinomial(torch.softmax(told, dim=1), 1, generator=draw)[:, 0]
    parts = torch.arange(6000) % 3
    temperature, loss = best_temperature(scores, classes)
    found = best_map(scores, classes, parts, temperature, (0.1, 1e-4))
    least = float(loss_of(told, classes))
    assert float(loss_of(found.logits(scores), classes)) < least + 0.1 * (loss - least)
    stiff = fit_map(scores, classes, temperature, 1e6)
    torch.testing.assert_close(stiff.logits(scores), plain_map(temperature, 3).logits(scores), atol=1e-4, rtol=0)


def test_a_map_is_the_least_of_its_loss() -> None:
    draw = torch.Generator().manual_seed(3)
    scores = torch.randn(500, 4, generator=draw, dtype=torch.float64)
    classes = torch.multinomial(torch.softmax(2 * scores, dim=1), 1, generator=draw)[:, 0]

    def total(found: ScoreMap) -> float:
        return float(
            loss_of(found.logits(scores), classes) + 0.01 * (found.mix.square().sum() + found.shift.square().sum())
        )

    found = fit_map(scores, classes, 1.0, 0.01)
    for _ in range(20):
        step = torch.randn(4, 4, generator=draw, dtype=torch.float64) * 0.02
        assert total(found) < total(found._replace(mix=found.mix + step))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_at_most_the_share_of_held_out_cells_is_unknown(share: float) -> None:
    p = torch.cat([torch.full((30,), 0.4), torch.linspace(0.5, 1, 71)]).double()
    assert float((p < unknown_below(p, share)).double().mean()) <= share
    if share == 0.5:
        assert float((p < unknown_below(p, share)).double().mean()) > 0.48


def test_probabilities_and_unknown_of_other_cells_are_as_promised(model: ScAMAC, cells: ad.AnnData) -> None:
    is_new = np.arange(N_CELLS) % 2 == 0
    found = model.annotate(cells[~is_new].copy(), "kind", cells[is_new].copy(), unknown=0.2)
    truth = cells.obs["cell_type"][is_new].astype(str).to_numpy()
    label, p = found.obs["scamac_label"], found.obs["scamac_label_probability"].to_numpy()
    assert list(label.cat.categories) == [*sorted(set(truth)), "unknown"]
    is_unknown = (label == "unknown").to_numpy()
    assert 0.1 < is_unknown.mean() < 0.3
    threshold = found.uns["scamac"]["labels"]["threshold"]
    assert p[~is_unknown].min() >= threshold > p[is_unknown].max()
    whole = model.annotate(cells[~is_new].copy(), "kind", cells[is_new].copy(), unknown=0)
    is_right = whole.obs["scamac_label"].astype(str).to_numpy() == truth
    assert abs(is_right.mean() - whole.obs["scamac_label_probability"].mean()) < 0.04
    assert is_right[~is_unknown].mean() > is_right.mean()


# ------------------------------------------------------------------ columns


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ("knd", {}, "obs has no column 'knd' .label.; it has .*cell_type"),
        ("own", {}, "every cell has a value of its own in the label column 'own'"),
        ("one", {}, "the label column 'one' has 1 label .'x'.; at least two"),
        ("none", {}, "the label column 'none' has 0 labels; at least two"),
        ("depth", {}, "the label column 'depth' holds measurements"),
        ("kind", {"unlabelled": ("moon",)}, "no cell has the label 'moon'"),
        ("kind", {"held_out": "moon"}, "has no column 'moon'"),
    ],
)
def test_a_column_that_tells_nothing_is_refused(label: str, options: dict[str, Any], message: str) -> None:
    names = ["a", "b"] * 10
    obs = pd.DataFrame({"cell_type": names, "kind": names, "own": range(20), "one": "x", "none": np.nan})
    obs["depth"] = np.linspace(0.5, 3, 20)
    with pytest.raises(InputError, match=message):
        read_labels(obs, LabelOptions(label=label, **options), (), 0, "obs")


def test_missing_labels_are_left_out_and_few_cells_are_told(caplog: pytest.LogCaptureFixture) -> None:
    names = ["T cell"] * 20 + ["B cell"] * 20 + ["rare", None, "nan", " ", "unknown", "doublet", "NA"]
    obs = pd.DataFrame(
        {"kind": pd.Categorical(names, categories=["T cell", "never", *sorted({n for n in names[20:] if n})])}
    )
    column = read_labels(obs, LabelOptions(label="kind", unlabelled=("doublet",)), (), 0, "REF")
    assert column.names == ("B cell", "T cell", "rare")
    assert column.n_missing == 6
    assert "REF: 6 of 47 cells have no label in 'kind'; they are left out" in caplog.text
    assert "labels of 'kind' with fewer than 10 cells: rare (1)" in caplog.text


def test_whole_levels_are_held_out_in_parts_of_about_the_same_size(caplog: pytest.LogCaptureFixture) -> None:
    obs = pd.DataFrame({"kind": ["a", "b"] * 90, "donor": [f"d{row % 9}" for row in range(180)]})
    column = read_labels(obs, LabelOptions(label="kind"), ("donor",), 0, "obs")
    assert (column.held_out, column.n_folds) == (("donor",), 5)
    assert pd.Series(column.folds).groupby(obs["donor"]).nunique().max() == 1
    obs["donor"] = ["d0", "d1"] * 90  # each label in a donor of its own
    column = read_labels(obs, LabelOptions(label="kind"), ("donor",), 0, "obs")
    assert column.held_out == ()
    assert "only 0 % of the labelled cells have a label that occurs with another value in donor" in caplog.text
    assert np.bincount(column.folds).tolist() == [36] * 5


@pytest.mark.parametrize("share", [-0.1, 0.7, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="unknown="):
        LabelOptions(label="kind", unknown=share)


def test_an_option_that_is_none_is_named(model: ScAMAC, cells: ad.AnnData) -> None:
    with pytest.raises(TypeError, match="annotate has no option 'unknwn'"):
        model.annotate(cells, "kind", cells, unknwn=0.1)  # type: ignore[call-arg]


# ------------------------------------------------------------------ results


@pytest.mark.parametrize("name", ["out.zarr", "out.h5ad"])
@pytest.mark.slow
def test_a_file_has_what_memory_has(model: ScAMAC, cells: ad.AnnData, stores: Path, tmp_path: Path, name: str) -> None:
    new = cells.copy()
    new.obs["scamac_label"] = "of another program"
    whole = model.annotate(cells, "kind", new)
    path = model.annotate(cells, "kind", new, tmp_path / name)
    found = ad.read_zarr(path) if name.endswith("zarr") else ad.read_h5ad(path)
    pd.testing.assert_frame_equal(found.obs[KEYS], whole.obs[KEYS])
    assert sorted(found.obsm) == ["X_scAMAC", "scamac_membership"]
    assert found.uns["scamac"]["labels"]["n_unlabelled"] == 260
    plain = model.predict(cells)
    np.testing.assert_array_equal(found.obsm["X_scAMAC"], plain.obsm["X_scAMAC"])
    assert (found.obs["scamac_cluster"].astype(str) == plain.obs["scamac_cluster"].astype(str)).all()
    assert "labels" not in plain.uns["scamac"]


@pytest.mark.slow
def test_a_finished_result_is_left_as_it_is_and_another_one_refused(
    model: ScAMAC, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = stores / "ordered.zarr", tmp_path / "out.zarr"
    model.annotate(store, "cell_type", store, out)
    before = digests(out)
    monkeypatch.setattr(fit, "sum_classes", None)  # would fail if the reference were read again
    model.annotate(store, "cell_type", store, out, resume=True)
    assert digests(out) == before
    with pytest.raises(ResumeError, match="unknown"):
        model.annotate(store, "cell_type", store, out, unknown=0.2, resume=True)
    with pytest.raises(ResumeError, match="begun otherwise"):
        model.predict(store, out, resume=True)


@pytest.mark.slow
def test_a_stop_while_the_reference_is_read_is_kept_and_gone_on_with(
    model: ScAMAC, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = stores / "ordered.zarr", tmp_path / "out.zarr"
    whole = digests(Path(model.annotate(store, "cell_type", store, tmp_path / "whole.zarr")))
    sums = fit.sum_classes

    def stopped(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return sums(*arguments)

    monkeypatch.setattr(fit, "sum_classes", stopped)
    with pytest.raises(StoppedError):
        model.annotate(store, "cell_type", store, out)
    assert not out.exists()
    monkeypatch.setattr(fit, "sum_classes", sums)
    with pytest.raises(ResumeError, match="begun otherwise"):
        model.predict(store, out, resume=True)  # its rows are narrower
    model.annotate(store, "cell_type", store, out, resume=True)
    assert digests(out) == whole


@pytest.mark.parametrize("kinds", ["aab", "ab" * 4, "a" * 30 + "b"])
def test_few_cells_are_enough_or_at_least_no_crash(model: ScAMAC, cells: ad.AnnData, kinds: str) -> None:
    few = cells[: len(kinds)].copy()
    few.obs["few"] = list(kinds)
    found = model.annotate(few, "few", few, unknown=0)
    assert set(found.obs["scamac_label"]) <= set(kinds)
    assert found.obs["scamac_label_probability"].between(0, 1).all()


def test_nothing_is_left_of_a_column_that_is_refused(model: ScAMAC, stores: Path, tmp_path: Path) -> None:
    store = stores / "ordered.zarr"
    with pytest.raises(InputError, match="has no column"):
        model.annotate(store, "knd", store, tmp_path / "out.zarr")
    assert list(tmp_path.iterdir()) == []


def test_cells_of_new_batches_are_placed_and_reference_batches_held_out() -> None:
    cells = build_donors()
    genes = tuple(cells.var_names[:120])
    model = by(with_correction(fitted_model(0, genes)))
    is_new = (cells.obs["donor"] == "cat").to_numpy()
    new = cells[is_new].copy()
    new.obs["donor"] = "dan"
    found = model.annotate(cells[~is_new].copy(), "cell_type", new)
    assert found.uns["scamac"]["labels"]["held_out_by"] == "donor,chip"
    plain = model.predict(new)
    np.testing.assert_array_equal(found.obsm["X_scAMAC"], plain.obsm["X_scAMAC"])


def test_the_command_line_writes_labels(
    model: ScAMAC, cells: ad.AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model")
    cells.write_h5ad(tmp_path / "x.h5ad")
    named = [
        "--run",
        str(tmp_path / "run"),
        "--reference",
        str(tmp_path / "x.h5ad"),
        "--input",
        str(tmp_path / "x.h5ad"),
    ]
    argv = ["annotate", *named, "--out", str(tmp_path / "out.zarr"), "--json", "--quiet"]
    assert main([*argv, "--label", "nothing"]) == 2
    assert "has no column 'nothing'" in capsys.readouterr().err
    assert main(argv) == 2
    assert "--label" in capsys.readouterr().err
    assert main([*argv, "--label", "kind", "--unknown", "0.1", "--held-out", "donor"]) == 0
    assert json.loads(capsys.readouterr().out)["n_cells"] == N_CELLS
    found = ad.read_zarr(tmp_path / "out.zarr")
    whole = model.annotate(cells, "kind", cells, unknown=0.1, held_out="donor")
    pd.testing.assert_frame_equal(found.obs[KEYS], whole.obs[KEYS])


@pytest.mark.slow
def test_workers_write_the_same_bytes(model: ScAMAC, cluster: Cluster, stores: Path, tmp_path: Path) -> None:
    for out, dask in (("a.zarr", None), ("b.zarr", cluster.address)):
        model.annotate(stores / "shuffled.zarr", "cell_type", stores / "ordered.zarr", tmp_path / out, dask=dask)
    assert digests(tmp_path / "a.zarr") == digests(tmp_path / "b.zarr")


@pytest.mark.slow
def test_scanpy_style_adds_two_columns_alone(model: ScAMAC, cells: ad.AnnData) -> None:
    new = cells[:100].copy()
    before = list(new.obs.columns)
    tl.annotate(new, model, cells, "kind", unknown=0.1)
    assert list(new.obs.columns) == [*before, *KEYS]
    assert not new.obsm
    whole = model.annotate(cells, "kind", cells, unknown=0.1)
    pd.testing.assert_frame_equal(new.obs[KEYS], whole.obs[KEYS].iloc[:100])


@pytest.fixture(autouse=True)
def _small_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("scamac_scale").setLevel(logging.NOTSET)
    look_often(monkeypatch.setattr, every_s=1000.0)
