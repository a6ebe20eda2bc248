from dataclasses import replace

import numpy as np
import pytest
import torch

from scamac_scale.config import InputConfig, ModelConfig, ScamacConfig
from scamac_scale.errors import ConfigError, MissingExtraError
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.train.clusters.selection import read_cells, sample_rows
from scamac_scale.train.start import (
    WEIGHT_STARTS,
    fit_input_scale,
    principal_components,
    start_from_pca,
)
from tests.support.memory import ArraySource

N_CELLS, N_GENES = 120, 30


@pytest.fixture
def source() -> ArraySource:
    rng = np.random.default_rng(0)
    return ArraySource(rng.poisson(1.5, (N_CELLS, N_GENES)) * rng.lognormal(0, 0.5, N_GENES))


def make(config: ScamacConfig) -> ScamacNetwork:
    torch.manual_seed(0)
    return ScamacNetwork(N_GENES, config.model, config.input)


SMALL = ScamacConfig(model=ModelConfig(encoder_width=24, latent_width=6, bank_cells=8))


def test_input_has_unit_cells_centered_genes_and_the_mean_sd_asked_for(source: ArraySource) -> None:
    network = make(SMALL)
    fit_input_scale(network, source, InputConfig())
    x = network.scale_input(torch.from_numpy(source.values)).numpy()
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=0).mean(), 0.5, rtol=1e-5)
    unit = source.values / np.linalg.norm(source.values, axis=1, keepdims=True)
    np.testing.assert_allclose(x, (unit - unit.mean(axis=0)) * float(network.input_scale), rtol=1e-4, atol=1e-6)


def test_input_is_left_alone_in_the_paper_config(source: ArraySource) -> None:
    config = replace(SMALL, input=InputConfig(unit_norm=False, center=False, gene_sd=None))
    network = make(config)
    fit_input_scale(network, source, InputConfig(gene_sd=None, center=False))
    values = torch.from_numpy(source.values)
    torch.testing.assert_close(network.scale_input(values), values)


def test_streamed_components_equal_scikit_learn(source: ArraySource) -> None:
    from sklearn.decomposition import PCA

    network = make(SMALL)
    fit_input_scale(network, source, InputConfig())
    mean, axes = principal_components(network, source, 5, np.arange(N_CELLS))
    x = network.scale_input(torch.from_numpy(source.values)).double().numpy()
    expected = PCA(5, svd_solver="full").fit(x).components_
    np.testing.assert_allclose(mean, x.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(np.abs((axes * expected.T).sum(axis=0)), 1, atol=1e-5)


@pytest.mark.parametrize("activation", ["leaky_relu", "linear"])
def test_network_starts_as_the_linear_pca_autoencoder(source: ArraySource, activation: str) -> None:
    config = replace(SMALL, model=replace(SMALL.model, encoder_activation=activation))
    network = make(config)
    fit_input_scale(network, source, InputConfig())
    start_from_pca(network, source, config.start.pca_cells, config.seed)
    x = network.scale_input(torch.from_numpy(source.values))
    with torch.no_grad():
        out = network(x, frozen=False)
    mean, axes = principal_components(network, source, 6, np.arange(N_CELLS))
    scores = (x.double().numpy() - mean) @ axes
    np.testing.assert_allclose(out.hidden.numpy(), scores, atol=2e-5)
    np.testing.assert_allclose(out.output.numpy(), scores @ axes.T + mean, atol=2e-5)
    for projected in out.projected:
        np.testing.assert_allclose(projected.numpy(), scores, atol=2e-5)
    np.testing.assert_allclose(out.latent.numpy(), scores, atol=2e-5)  # attention starts with no influence


def test_pca_start_says_what_it_cannot_do(source: ArraySource) -> None:
    leaky = replace(SMALL, model=replace(SMALL.model, latent_activation="leaky_relu"))
    with pytest.raises(ConfigError, match=r"start\.weights to 'kaiming'"):
        start_from_pca(make(leaky), source, 1000, 0)
    narrow = replace(SMALL, model=replace(SMALL.model, encoder_width=10))
    with pytest.raises(ConfigError, match="encoder_width >= 2"):
        start_from_pca(make(narrow), source, 1000, 0)


def test_more_components_than_cells_leave_the_rest_at_zero(source: ArraySource) -> None:
    few = ArraySource(source.values[:4])
    network = make(SMALL)
    fit_input_scale(network, few, InputConfig())
    start_from_pca(network, few, 1000, 0)
    with torch.no_grad():
        hidden = network(network.scale_input(torch.from_numpy(few.values)), frozen=False).hidden
    assert hidden[:, 3:].abs().max() < 1e-6


def test_samples_are_sorted_distinct_and_a_function_of_seed_and_purpose() -> None:
    rows = sample_rows(1000, 50, 3, "bank")
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sample_rows(1000, 50, 3, "bank"))
    assert not np.array_equal(rows, sample_rows(1000, 50, 3, "landmarks"))
    np.testing.assert_array_equal(sample_rows(20, 50, 3, "bank"), np.arange(20))


def test_read_cells_gives_the_rows_asked_for(source: ArraySource) -> None:
    network = make(SMALL)
    rows = np.array([3, 17, 99])
    expected = network.scale_input(torch.from_numpy(source.values[rows]))
    torch.testing.assert_close(read_cells(source, rows, network), expected)


def test_identity_start_passes_the_first_genes_through(source: ArraySource) -> None:
    network = make(SMALL)
    WEIGHT_STARTS["identity"](network, source, 1000, 0)
    x = torch.rand(5, N_GENES)
    hidden = network(x, frozen=False).hidden
    torch.testing.assert_close(hidden, x[:, : SMALL.model.latent_width])


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from scamac_scale.train.checks import check_settings

    monkeypatch.setitem(sys.modules, "faiss", None)  # import then fails as if it were not installed
    with pytest.raises(MissingExtraError, match=r"install scamac-scale\[cpu\]"):
        check_settings(replace(SMALL, n_clusters=3, start=replace(SMALL.start, centers="faiss_kmeans")))
