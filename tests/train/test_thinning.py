"""A count likelihood: its molecules are dealt out by seed, step and block; its fit learns profiles; it refuses what are no counts."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import torch

from scamac_scale import IngestConfig, ScAMAC, cluster, ingest
from scamac_scale.config import PhaseConfig
from scamac_scale.errors import ConfigError, InputError
from scamac_scale.loader.plan import EpochPlan
from scamac_scale.ops.thinning import counts_of, values_of
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sources import open_source
from scamac_scale.train.fit import build_network, gather_tools
from scamac_scale.train.placement import launch
from scamac_scale.train.recipe import Tools, find_clusters, freeze, scale_input, start_weights
from scamac_scale.train.state import FitState
from scamac_scale.train.thinning import Thinned, Thinning
from tests.support.csr import dense
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.config import ScamacConfig
    from scamac_scale.sources import OpenSource

COUNTS = replace(QUICK, loss=replace(QUICK.loss, reconstruction="poisson"))


@pytest.fixture(scope="module")
def store(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest(tiny_atlas, tmp_path_factory.mktemp("counts") / "store.zarr", IngestConfig(n_genes=100))


def dealt_out(store: Path, seed: int, step: int, world: World = ALONE) -> tuple[Thinned, torch.Tensor]:
    """Both parts of a step, and the values of its cells."""
    with open_source(store) as source:
        plan = EpochPlan(source.n_cells, 120, seed=0, world=world)
        rows = plan.share(step).rows
        values = torch.from_numpy(dense(source.read(rows)))
        return Thinning(source, 0.25, seed, plan, 4, world).split(step, values, rows), values


def test_the_two_parts_add_up_to_the_counts_of_the_file(store: Path, tiny_atlas: Path) -> None:
    (seen, held_out), _ = dealt_out(store, 7, 1)
    with open_source(store) as source:
        rows = EpochPlan(source.n_cells, 120, seed=0).share(1).rows
        raw = ad.read_h5ad(tiny_atlas)[source.source_rows[rows], list(source.gene_names)].X
        assert source.totals is not None
        assert source.gene_space.target_sum is not None
        scale = source.gene_space.target_sum / source.totals[rows][:, None]
    left = np.asarray(raw.toarray()) - held_out.numpy()
    assert left.min() >= 0
    assert 0.2 < held_out.sum() / raw.sum() < 0.3
    np.testing.assert_allclose(seen.numpy(), np.log1p(left * scale / 0.75), rtol=1e-5)


def tools_of(config: ScamacConfig, source: OpenSource) -> tuple[Tools, FitState]:
    """What a fit works with, after its first stage."""
    state = FitState(build_network(source, config))
    tools = gather_tools(launch(config.train), state, source, config)
    scale_input(tools, state)
    return tools, state


@pytest.mark.parametrize("is_noisy", [True, False])
def test_the_network_does_not_see_what_it_must_predict(store: Path, is_noisy: bool) -> None:
    with open_source(store) as source:
        tools, state = tools_of(COUNTS, source)
        with closing(tools.stepper._batches(3, 1, is_noisy=is_noisy)) as batches:
            batch = next(batches)
            clean, noisy, target = tools.stepper._corrupted(3, batch, is_noisy=is_noisy)
            assert source.totals is not None
            assert source.gene_space.target_sum is not None
            scale = torch.from_numpy(source.gene_space.target_sum / source.totals[batch.rows])[:, None].float()
            counts = counts_of(batch.values, scale)
            torch.testing.assert_close(clean, state.network.scale_input(batch.values))
            assert target is not None
            if is_noisy:
                seen = values_of(counts - target, scale / 0.8)
                torch.testing.assert_close(noisy, state.network.scale_input(seen))
                assert 0.15 < float(target.sum() / counts.sum()) < 0.25
            else:
                torch.testing.assert_close(noisy, clean)
                torch.testing.assert_close(target, 0.2 * counts)


def test_the_weight_of_the_similarity_is_measured_against_counts(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = []
    for share in (0.2, 0.4):
        config = replace(COUNTS, input=replace(COUNTS.input, target_share=share))
        with open_source(store) as source:
            tools, state = tools_of(config, source)
            for stage in (start_weights, freeze, find_clusters):
                stage(tools, state)
            assert "Eq. (15) has no weight" in caplog.text
            with torch.no_grad():  # the output layer starts at zero, and passes no gradient on
                state.network.autoencoder.w4.weight.copy_(torch.linspace(-1, 1, 3200).view(100, 32))
            weights.append(tools.stepper.similarity_weight(state))
    # twice the counts have twice the gradient, and Eq. (15) is the same
    assert weights[1] == pytest.approx(2 * weights[0], rel=1e-4)


def test_cells_without_counts_do_no_harm(tiny_adata: ad.AnnData) -> None:
    cells = tiny_adata.copy()
    values = cells.X.toarray()
    values[:5] = 0
    cells.X = values
    found = ScAMAC(config=COUNTS).fit(cells).predict(cells, denoised=True)
    assert np.isfinite(found.obsm["X_scAMAC"]).all()
    assert (found.layers["scamac_denoised"][:5] == 0).all()


def test_genes_that_an_input_lacks_take_none_of_its_counts(tiny_adata: ad.AnnData) -> None:
    model = ScAMAC(config=COUNTS).fit(tiny_adata)
    some = tiny_adata[:, : int(0.7 * tiny_adata.n_vars)].copy()
    found = model.predict(some, denoised=True, accept=("totals",))
    kept = [name for name in found.var_names if name in set(some.var_names)]
    whole = np.expm1(found[:, kept].layers["scamac_denoised"]).sum(axis=1)
    assert model.fitted.genes.target_sum is not None
    raw = np.asarray(some.X.toarray(), dtype=np.float64)
    filtered = [name in set(model.fitted.genes.filtered) for name in some.var_names]
    chosen = [name in set(model.fitted.genes.chosen) for name in some.var_names]
    expected = raw[:, chosen].sum(axis=1) / raw[:, filtered].sum(axis=1) * model.fitted.genes.target_sum
    np.testing.assert_allclose(whole, expected, rtol=1e-4)


def test_a_draw_is_a_function_of_seed_step_and_block(store: Path) -> None:
    first, again, other = (dealt_out(store, seed, 1)[0].held_out for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_ranks_put_together_draw_as_one_process(store: Path) -> None:
    whole = dealt_out(store, 7, 1)[0].held_out
    for size in (2, 4):
        parts = [dealt_out(store, 7, 1, World(rank, size))[0].held_out for rank in range(size)]
        assert torch.equal(torch.cat(parts), whole)


def test_a_fit_starts_at_the_mean_profile_and_learns_those_of_types(store: Path, tiny_atlas: Path) -> None:
    raw = ad.read_h5ad(tiny_atlas)
    losses = []
    for epochs in (0, 8):
        train = replace(COUNTS.train, rounds=0, pretrain=PhaseConfig(epochs=epochs))
        model = ScAMAC(config=replace(COUNTS, train=train)).fit(store)
        genes = list(model.fitted.genes.chosen)
        counts = np.asarray(raw[:, genes].X.toarray(), dtype=np.float64)
        found = np.expm1(model.predict(tiny_atlas, denoised=True)[:, genes].layers["scamac_denoised"])
        profile = found / found.sum(axis=1, keepdims=True)
        if epochs == 0:
            scaled = counts / np.asarray(raw[:, list(model.fitted.genes.filtered)].X.sum(axis=1)).reshape(-1, 1)
            np.testing.assert_allclose(profile, (scaled.sum(axis=0) / scaled.sum())[None].repeat(300, 0), rtol=1e-3)
        losses.append(-(counts * np.log(profile)).sum() / counts.sum())
    assert losses[1] < 0.985 * losses[0]


def test_a_count_likelihood_fits_without_noise_and_from_memory_alike(store: Path) -> None:
    silent = replace(COUNTS.train.pretrain, is_noisy=False)
    config = replace(COUNTS, train=replace(COUNTS.train, rounds=0, pretrain=silent))
    streamed = replace(config, loader=replace(config.loader, cache="none"))
    found = [ScAMAC(config=each).fit(store).predict(store).obsm["X_scAMAC"] for each in (config, streamed)]
    np.testing.assert_array_equal(*found)


def test_values_that_are_no_counts_are_refused(tiny_adata: ad.AnnData) -> None:
    logged = tiny_adata.copy()
    logged.X = np.log1p(logged.X.toarray() / 3.0)
    with pytest.raises(InputError, match="'poisson' needs counts, and the values of this input are 'log'"):
        ScAMAC(config=COUNTS).fit(logged)


def test_corrected_batches_need_a_decoder_that_is_told_of_them(tiny_adata: ad.AnnData) -> None:
    cells = tiny_adata.copy()
    cells.obs["donor"] = np.resize(["ann", "bob"], cells.n_obs)
    with pytest.raises(ConfigError, match=r"tell the decoder of them: model\.decoder_condition=bias"):
        ScAMAC(config=COUNTS, batch_key="donor").fit(cells)
    told = replace(COUNTS, model=replace(COUNTS.model, decoder_condition="bias"))
    model = ScAMAC(config=told, batch_key="donor").fit(cells)
    for batch in ("own", "mean", "ann"):
        found = model.predict(cells, denoised=True, denoised_batch=batch).layers["scamac_denoised"]
        assert np.isfinite(found).all()
        assert (found >= 0).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"output_activation": "leaky_relu"}}, "needs a linear output"),
        ({"train": {"pretrain": PhaseConfig(terms=("layers",)), "phases": ()}}, "no phase has the term reconstruction"),
    ],
)
def test_settings_that_leave_nothing_to_learn_are_refused_before_any_work(
    changes: dict[str, dict[str, Any]], words: str, tmp_path: Path
) -> None:
    config = replace(COUNTS, **{name: replace(getattr(COUNTS, name), **values) for name, values in changes.items()})
    with pytest.raises(ConfigError, match=words):
        cluster("no file", tmp_path / "x.h5ad", config=config)
    with pytest.raises(ConfigError, match="tell the decoder"):
        cluster("no file", tmp_path / "x.h5ad", config=COUNTS, ingest=IngestConfig(batch_key="donor"))
    assert not list(tmp_path.iterdir())


def test_settings_without_effect_are_named(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = replace(COUNTS.train, rounds=0, pretrain=PhaseConfig(epochs=0))
    ScAMAC(config=replace(COUNTS, train=short, input=replace(COUNTS.input, noise_low=-1.0))).fit(store)
    assert "input.noise_low and input.noise_high have no effect" in caplog.text
    ScAMAC(config=replace(QUICK, train=short, input=replace(QUICK.input, target_share=0.5))).fit(store)
    assert "input.target_share has no effect" in caplog.text


def test_a_share_of_molecules_lies_between_none_and_all() -> None:
    with pytest.raises(ConfigError, match=r"input.target_share=1.0; it is a share of the molecules"):
        replace(COUNTS.input, target_share=1.0)
