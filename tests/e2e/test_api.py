import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

from scamac_scale import IngestConfig, ScAMAC, evaluate, ingest, tl
from scamac_scale.config import LoaderConfig, LossConfig, PhaseConfig, StartConfig
from scamac_scale.errors import ConfigError, InputError, NumericalError, OutputError, StoreError
from tests.support.failing import contents
from tests.support.settings import QUICK, STREAMED

ROOT = Path(__file__).parents[2]


def same_weights(a: ScAMAC, b: ScAMAC) -> bool:
    states = [model.fitted.network.state_dict() for model in (a, b)]
    return all(
        np.array_equal(states[0][name].numpy(), states[1][name].numpy()) for name in states[0]
    ) and np.array_equal(a.fitted.clusters.centers.numpy(), b.fitted.clusters.centers.numpy())


def test_the_four_types_are_found(model: ScAMAC, store: Path) -> None:
    found = model.predict(store)
    assert evaluate(found, "cell_type")["ari"] > 0.95
    assert found.obs["scamac_cluster"].cat.categories.tolist() == ["0", "1", "2", "3"]
    np.testing.assert_allclose(found.obsm["scamac_membership"].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.obsm["scamac_membership"].argmax(axis=1), found.obs["scamac_cluster"].cat.codes)


def test_rows_come_back_in_the_order_of_the_input(model: ScAMAC, store: Path, tiny_adata: ad.AnnData) -> None:
    found = model.predict(store)
    assert found.obs_names.tolist() == tiny_adata.obs_names.tolist()
    order = np.random.default_rng(0).permutation(tiny_adata.n_obs)
    shuffled = model.predict(tiny_adata[order].copy())
    assert shuffled.obs_names.tolist() == tiny_adata.obs_names[order].tolist()
    np.testing.assert_array_equal(shuffled.obsm["X_scAMAC"], found.obsm["X_scAMAC"][order])


def test_store_h5ad_and_memory_predict_the_same(
    model: ScAMAC, store: Path, tiny_atlas: Path, tiny_adata: ad.AnnData
) -> None:
    expected = model.predict(store).obsm["X_scAMAC"]
    for data in (tiny_atlas, tiny_adata):
        np.testing.assert_allclose(model.predict(data).obsm["X_scAMAC"], expected, rtol=1e-5, atol=1e-6)


def test_a_latent_does_not_depend_on_its_batch_mates(model: ScAMAC, tiny_adata: ad.AnnData) -> None:
    alone = model.predict(tiny_adata[17:18].copy())
    together = model.predict(tiny_adata)
    np.testing.assert_allclose(alone.obsm["X_scAMAC"][0], together.obsm["X_scAMAC"][17], atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(model: ScAMAC, store: Path) -> None:
    assert same_weights(ScAMAC(config=QUICK).fit(store), model)
    assert not same_weights(ScAMAC(config=QUICK, seed=1).fit(store), model)


def test_streaming_from_disk_and_from_memory_give_the_same_bits(model: ScAMAC, store: Path) -> None:
    assert same_weights(ScAMAC(config=STREAMED).fit(store), model)


def test_raw_data_and_a_store_in_its_order_fit_alike(tiny_atlas: Path, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    settings = IngestConfig(n_genes=100, shuffle=False)
    model = ScAMAC(config=QUICK).fit(ingest(tiny_atlas, tmp_path / "ordered.zarr", settings))
    for data in (tiny_atlas, tiny_adata):
        assert same_weights(ScAMAC(config=QUICK).fit(data, ingest=settings), model)


def test_both_profiles_of_a_store_fit_alike(model: ScAMAC, tiny_atlas: Path, tmp_path: Path) -> None:
    small = ingest(tiny_atlas, tmp_path / "small.zarr", IngestConfig(n_genes=100, profile="small"))
    assert same_weights(ScAMAC(config=STREAMED).fit(small), model)


@pytest.mark.parametrize("options", [{"cache": "device"}, {"densify": "device", "cache": "none"}, {"threads": 1}])
def test_where_cells_are_kept_and_made_dense_changes_no_bit(
    model: ScAMAC, store: Path, options: dict[str, Any]
) -> None:
    config = replace(QUICK, loader=LoaderConfig(**options))
    assert same_weights(ScAMAC(config=config).fit(store), model)


@pytest.mark.parametrize("column", ["cell_type", "partly"])
def test_classes_can_be_balanced(tiny_adata: ad.AnnData, column: str, tmp_path: Path) -> None:
    tiny_adata.obs["partly"] = tiny_adata.obs["cell_type"].astype(object).where(np.arange(300) % 3 > 0)
    path = ingest(tiny_adata, tmp_path / "a.zarr", IngestConfig(n_genes=100))
    config = replace(STREAMED, loader=LoaderConfig(balance_by=column, cache="none"))
    assert evaluate(ScAMAC(config=config).fit(path).predict(path), "cell_type")["ari"] > 0.95


def test_a_column_that_is_not_there_lists_those_that_are(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"loader\.balance_by='type' is no column of obs; known are cell_type"):
        ScAMAC(config=replace(QUICK, loader=LoaderConfig(balance_by="type"))).fit(store)


def test_damage_of_a_store_ends_a_fit_with_the_name_of_the_file(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy.zarr"))
    path = copy / "X" / "indices" / "c" / "0"
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    with pytest.raises(StoreError, match=r"X/indices/c/0: chunk 0 is damaged"):
        ScAMAC(config=STREAMED).fit(copy, run=tmp_path / "run")
    path.unlink()
    with pytest.raises(StoreError, match=r"X/indices/c/0 is missing"):
        ScAMAC(config=STREAMED).fit(copy)


def test_a_model_comes_back_from_disk_as_it_was(model: ScAMAC, store: Path, tmp_path: Path) -> None:
    path = model.save(tmp_path / "model")
    again = ScAMAC.load(path)
    assert same_weights(again, model)
    assert again.config == model.config
    np.testing.assert_array_equal(again.predict(store).obsm["X_scAMAC"], model.predict(store).obsm["X_scAMAC"])
    assert sorted(file.name for file in path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_damaged_model_is_refused(model: ScAMAC, tmp_path: Path) -> None:
    path = model.save(tmp_path / "model")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: it is not what was written"):
        ScAMAC.load(path)
    with pytest.raises(InputError, match="readable model"):
        ScAMAC.load(tmp_path)


def test_saving_over_something_else_is_refused(model: ScAMAC, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds no model\.json"):
        model.save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_new_cells_with_missing_genes_are_predicted_and_with_half_gone_refused(
    model: ScAMAC, tiny_adata: ad.AnnData
) -> None:
    genes = list(model.fitted.genes.chosen)
    kept = [name for name in tiny_adata.var_names if name not in set(genes[::10])]
    found = model.predict(tiny_adata[:, kept[::-1]].copy(), accept="totals")
    assert evaluate(found, "cell_type")["ari"] > 0.8  # a tenth of the genes is gone
    few = [name for name in tiny_adata.var_names if name not in set(genes[: len(genes) // 2 + 1])]
    with pytest.raises(InputError, match="genes"):
        model.predict(tiny_adata[:, few].copy())


def test_run_folder_holds_settings_metrics_and_model(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = ScAMAC(config=QUICK).fit(store, run=run)
    report = json.loads((run / "run.json").read_text())
    assert report["finished"]
    assert report["n_clusters"] == 4
    assert report["versions"]["torch"]
    assert report["peak_memory_bytes"] > 0
    assert 0 < report["similarity_over_all_pairs"] < 0.2
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert {"reconstruction", "layers", "similarity", "clustering", "total"} <= set(header.split(","))
    assert len(rows) >= 3
    assert list((run / "tensorboard").glob("events.*"))
    assert "n_clusters: 4" in (run / "config.yaml").read_text()
    assert same_weights(ScAMAC.load(run / "model"), model)
    with pytest.raises(OutputError, match="is finished"):
        ScAMAC(config=QUICK).fit(store, run=run)


def test_a_finished_run_is_resumed_only_with_its_settings_and_cells(
    model: ScAMAC, store: Path, tiny_adata: ad.AnnData, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ScAMAC(config=QUICK).fit(store, run=run)
    before = contents(run)
    assert same_weights(ScAMAC(config=STREAMED).fit(store, run=run, resume=True), model)
    with pytest.raises(ConfigError, match=r"other settings: seed=1 \(it was 0\)"):
        ScAMAC(config=QUICK, seed=1).fit(store, run=run, resume=True)
    order = np.random.default_rng(0).permutation(300)
    for other in (
        tiny_adata[:250].copy(),
        tiny_adata[order].copy(),
        tiny_adata,
    ):  # the last has its genes chosen otherwise
        with pytest.raises(ConfigError, match="other cells or genes"):
            ScAMAC(config=QUICK).fit(other, run=run, resume=True)
    assert contents(run) == before


def test_a_tilde_is_the_home_wherever_something_is_written(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):  # anew, and when it is there
        model = ScAMAC(config=QUICK).fit(store, run="~/run", resume=True)
        assert ScAMAC.load(model.save("~/model")).predict(store, "~/out.zarr", resume=True) == tmp_path / "out.zarr"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.zarr", "run", "work"]
    assert list((tmp_path / "work").iterdir()) == []


def test_the_number_of_clusters_is_found(store: Path) -> None:
    model = ScAMAC("auto", config=QUICK).fit(store)
    assert model.report["is_count_estimated"]
    assert model.fitted.n_clusters == 4
    tried = model.report["n_clusters_tried"]
    assert tried["n_clusters"][int(np.argmax(tried["score"]))] == 4


def test_a_number_that_is_found_gives_the_model_of_the_same_number_told(store: Path) -> None:
    models = [ScAMAC(k, config=QUICK).fit(store) for k in ("auto", 4)]
    assert same_weights(*models)
    found, told = (model.fitted for model in models)
    assert found.clusters.temperature == told.clusters.temperature
    assert found.tree is not None
    assert told.tree is not None
    np.testing.assert_array_equal(found.tree.merges, told.tree.merges)


def test_a_fit_is_cut_anew_from_its_folder(model: ScAMAC, store: Path, tmp_path: Path) -> None:
    again = ScAMAC.load(model.save(tmp_path / "model"))
    plain = model.predict(store)
    own = again.predict(store, n_clusters=4, levels="2,9")
    for key in plain.obsm:
        np.testing.assert_array_equal(own.obsm[key], plain.obsm[key])
    assert evaluate(own, "cell_type", key="scamac_cluster_2")["ari"] < 0.9
    finer = again.predict(store, n_clusters=9)
    assert finer.obsm["scamac_membership"].shape == (300, 9)
    truth = finer.obs.groupby("scamac_cluster", observed=True)["cell_type"]
    assert (truth.agg(lambda types: types.value_counts(normalize=True).max()) > 0.9).mean() > 0.8
    two = again.predict(store, n_clusters=2).obs["scamac_cluster"]
    assert evaluate(ad.AnnData(obs=own.obs.assign(two=two.to_numpy())), "scamac_cluster_2", key="two")["ari"] > 0.95


def test_clusters_that_are_not_of_a_tree_are_not_cut(store: Path) -> None:
    found = ScAMAC(config=replace(QUICK, start=replace(QUICK.start, centers="ward"))).fit(store)
    with pytest.raises(ConfigError, match=r"has no tree of its clusters.*start\.centers"):
        found.predict(store, n_clusters=3)


@pytest.mark.parametrize("centers", ["ward", "kmeans", "faiss_kmeans", "random"])
@pytest.mark.parametrize("target", ["membership", "consensus"])
@pytest.mark.slow
def test_every_start_and_target_fits(store: Path, centers: str, target: str) -> None:
    config = replace(
        QUICK, start=replace(QUICK.start, centers=centers), loss=replace(QUICK.loss, similarity_target=target)
    )
    found = ScAMAC(config=config).fit(store).predict(store)
    assert evaluate(found, "cell_type")["ari"] > (0.2 if centers == "random" else 0.9)


def test_one_cluster_is_one_cluster(store: Path) -> None:
    found = ScAMAC(1, config=QUICK).fit(store).predict(store)
    assert (found.obs["scamac_cluster"] == "0").all()
    np.testing.assert_array_equal(found.obsm["scamac_membership"], np.ones((300, 1)))


def test_denoised_values_are_log_normalised_expression(model: ScAMAC, store: Path) -> None:
    found = model.predict(store, denoised=True)
    denoised = found.layers["scamac_denoised"]
    truth = ad.read_zarr(store)
    values = truth.X.toarray()
    values = np.log1p(values * (truth.obs["scamac_scale"].to_numpy()[:, None] if "scamac_scale" in truth.obs else 1.0))
    assert denoised.shape == values.shape
    assert (denoised >= 0).all()
    assert np.corrcoef(denoised.mean(axis=0), values.mean(axis=0))[0, 1] > 0.95


@pytest.mark.parametrize("suffix", [".zarr", pytest.param(".h5ad", marks=pytest.mark.slow)])
def test_streamed_output_equals_the_one_in_memory(model: ScAMAC, store: Path, tmp_path: Path, suffix: str) -> None:
    expected = model.predict(store, denoised=True)
    path = model.predict(store, out=tmp_path / f"out{suffix}", denoised=True)
    found = ad.read_zarr(path) if suffix == ".zarr" else ad.read_h5ad(path)
    for key in ("X_scAMAC", "scamac_membership"):
        np.testing.assert_array_equal(found.obsm[key], expected.obsm[key])
    np.testing.assert_array_equal(found.layers["scamac_denoised"], expected.layers["scamac_denoised"])
    assert (found.obs["scamac_cluster"] == expected.obs["scamac_cluster"]).all()
    assert found.obs["cell_type"].tolist() == expected.obs["cell_type"].tolist()
    np.testing.assert_array_equal(found.uns["scamac_details"]["centers"], expected.uns["scamac_details"]["centers"])
    assert evaluate(path, "cell_type") == evaluate(expected, "cell_type")
    assert [entry.name for entry in tmp_path.iterdir()] == [f"out{suffix}"]


def test_an_output_that_exists_or_cannot_be_written_is_refused(model: ScAMAC, store: Path, tmp_path: Path) -> None:
    (tmp_path / "out.zarr").mkdir()
    with pytest.raises(OutputError, match="already there"):
        model.predict(store, out=tmp_path / "out.zarr")
    with pytest.raises(InputError, match=r"\.zarr or \.h5ad"):
        model.predict(store, out=tmp_path / "out.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        model.predict(store, out=tmp_path / "file" / "out.zarr")


def test_too_many_clusters_are_refused_before_anything_is_written(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="301 exceeds the number of cells, 300"):
        ScAMAC(301, config=QUICK).fit(store, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="at least 1"):
        ScAMAC(0)
    with pytest.raises(ConfigError, match="'auto'"):
        ScAMAC("many")


REFUSED = {
    "model.encoder_width": {"model": replace(QUICK.model, encoder_width=9)},
    r"train\.pretrain\.terms is empty": {"train": replace(QUICK.train, pretrain=PhaseConfig(terms=()))},
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    store: Path, tmp_path: Path, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ScAMAC(config=replace(QUICK, **REFUSED[message])).fit(store, run=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_input_that_is_refused_leaves_no_run_folder(tmp_path: Path, tiny_adata: ad.AnnData) -> None:
    with pytest.raises(InputError, match="layer"):
        ScAMAC(config=QUICK).fit(tiny_adata, run=tmp_path / "run", ingest=IngestConfig(matrix="counts"))
    assert list(tmp_path.iterdir()) == []


def test_whole_numbers_may_come_as_floats_as_from_r() -> None:
    config = ScAMAC(4.0, seed=1.0).config  # type: ignore[arg-type]  # as reticulate hands them over
    assert (repr(config.n_clusters), repr(config.seed)) == ("4", "1")
    assert repr(IngestConfig(n_genes=50.0).n_genes) == "50"  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"ingest\.n_genes=1\.5; it must be a whole number \(in R, write 4L for 4\)"):
        IngestConfig(n_genes=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [2.5, True, "5"])
def test_a_count_that_is_no_whole_number_is_refused(number: Any) -> None:
    with pytest.raises(ConfigError, match="whole number or 'auto'"):
        ScAMAC(number)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    assert ScAMAC(np.int64(5), seed=np.int32(3)).config == ScAMAC(5, seed=3).config


@pytest.mark.slow
def test_bf16_fits_on_the_cpu(store: Path) -> None:
    config = replace(QUICK, train=replace(QUICK.train, precision="bf16-mixed"))
    assert evaluate(ScAMAC(config=config).fit(store).predict(store), "cell_type")["ari"] > 0.9


def test_repeated_cells_do_not_break_the_consensus(tiny_adata: ad.AnnData) -> None:
    repeated = ad.AnnData(tiny_adata.X[np.repeat([3, 40], 20)], var=tiny_adata.var)
    found = ScAMAC(2, config=QUICK).fit(repeated).predict(repeated)
    codes = found.obs["scamac_cluster"].cat.codes.to_numpy()
    assert len(set(codes[:20])) == len(set(codes[20:])) == 1
    assert codes[0] != codes[-1]


def test_auto_needs_the_consensus(store: Path) -> None:
    config = replace(QUICK, start=StartConfig(centers="ward"))
    with pytest.raises(ConfigError, match="needs a number of clusters"):
        ScAMAC("auto", config=config).fit(store)


def test_a_loss_that_overflows_stops_the_fit(store: Path, tmp_path: Path) -> None:
    phase = replace(QUICK.train.pretrain, optimizer="sgd", learning_rate=1e6, epochs=20)
    config = replace(QUICK, train=replace(QUICK.train, pretrain=phase))
    with pytest.raises(NumericalError, match="not finite at step"):
        ScAMAC(config=config).fit(store, run=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not report["finished"]
    assert "not finite" in report["error"]
    ScAMAC(config=QUICK).fit(store, run=tmp_path / "run")  # what did not finish may be done again
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_an_unfitted_model_says_so(store: Path) -> None:
    with pytest.raises(InputError, match="call fit"):
        ScAMAC(3).predict(store)


def test_scanpy_style_works_in_place(tiny_adata: ad.AnnData) -> None:
    expected = tiny_adata.X.copy()
    tl.scamac(tiny_adata, config=QUICK, levels=(2, 7))
    assert evaluate(tiny_adata, "cell_type")["ari"] > 0.95
    assert tiny_adata.obs["scamac_cluster_7"].cat.categories.size == 7
    assert tiny_adata.uns["dendrogram_scamac_cluster"]["linkage"].shape == (3, 4)
    assert tiny_adata.obsm["X_scAMAC"].shape == (300, 8)
    assert (expected != tiny_adata.X).nnz == 0


def test_weight_of_the_similarity_is_measured_or_given(store: Path) -> None:
    given = ScAMAC(config=replace(QUICK, loss=LossConfig(similarity_weight=2.5))).fit(store)
    assert given.report["similarity_weight"] == 2.5
    assert ScAMAC(config=QUICK).fit(store).report["similarity_weight"] > 0


LEFT = """
import gc, sys, weakref
from scamac_scale import ScAMAC
from scamac_scale.train.stepper import Stepper
from tests.support.settings import QUICK
made, begin = [], Stepper.__init__
def noted(self, *arguments, **options):
    begin(self, *arguments, **options)
    made.extend([weakref.ref(self), weakref.ref(self.source), weakref.ref(self.blocks)])
Stepper.__init__ = noted
gc.disable()  # what hangs together in a circle would stay until Python looks for such
for _ in range(2):
    ScAMAC(config=QUICK).fit(sys.argv[1])
print([found() for found in made])
"""


@pytest.mark.slow
def test_a_fit_leaves_nothing_in_memory_but_the_model(store: Path) -> None:
    """In a new process: an import that fails keeps the frames that it was asked from."""
    done = subprocess.run([sys.executable, "-c", LEFT, store], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([None] * 6)


def test_a_disk_without_room_for_checkpoints_is_refused_before_the_first_step(
    tiny_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit() -> None:
        often = replace(QUICK, train=replace(QUICK.train, checkpoint_every_steps=1))
        ScAMAC(config=often).fit(tiny_adata, run=tmp_path / "run")

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(OutputError, match=r"needs up to [\d,]+ bytes, 0 are free") as caught:
        fit()
    assert not (tmp_path / "run").exists()
    needed = int(re.findall(r"[\d,]{5,}", str(caught.value).rpartition("needs up to")[2])[0].replace(",", ""))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    fit()
    largest = max(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert 3 * largest == pytest.approx(needed, rel=0.35)  # a small network: sums of the atlas and settings count, too
