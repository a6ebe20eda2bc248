"""A count likelihood: its molecules are dealt out by seed, step and block; its fit learns profiles; it refuses what are no counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
import torch

from scamac_scale import IngestConfig, ScAMAC, ingest
from scamac_scale.config import PhaseConfig
from scamac_scale.errors import ConfigError, InputError
from scamac_scale.loader.plan import EpochPlan
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sources import open_source
from scamac_scale.train.thinning import Thinned, Thinning
from tests.support.csr import dense
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from pathlib import Path

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


def test_a_share_of_molecules_lies_between_none_and_all() -> None:
    with pytest.raises(ConfigError, match=r"input.target_share=1.0; it is a share of the molecules"):
        replace(COUNTS.input, target_share=1.0)
