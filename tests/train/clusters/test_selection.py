from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scamac_scale.config import ModelConfig, ScamacConfig
from scamac_scale.errors import ConfigError, MissingExtraError
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.train.checks import check_settings, check_size
from scamac_scale.train.clusters.selection import SELECTIONS, faiss_kmeans
from scamac_scale.train.start import fit_input_scale, start_from_pca
from tests.support.memory import ArraySource

if TYPE_CHECKING:
    from collections.abc import Iterable

N, G, N_RARE = 4000, 40, 12


@pytest.fixture(scope="module")
def source() -> ArraySource:
    """4,000 cells of two common kinds, and 12 of a rare one."""
    rng = np.random.default_rng(0)
    mean = rng.gamma(2.0, 1.0, G)
    kinds = np.repeat([0, 1, 2], [2400, N - 2400 - N_RARE, N_RARE])
    profiles = np.stack([mean, mean, mean])
    for kind in range(3):
        profiles[kind, kind * 8 : kind * 8 + 8] *= 6
    return ArraySource(rng.poisson(profiles[kinds]))


@pytest.fixture(scope="module")
def network(source: ArraySource) -> ScamacNetwork:
    config = ScamacConfig(model=ModelConfig(encoder_width=24, latent_width=6, bank_cells=8))
    torch.manual_seed(0)
    network = ScamacNetwork(G, config.model, config.input)
    fit_input_scale(network, source, config.input)
    start_from_pca(network, source, config.start.pca_cells, config.seed)
    return network.eval()


@pytest.mark.parametrize("name", SELECTIONS)
def test_rows_ascend_differ_and_are_as_many_as_asked_for(
    source: ArraySource, network: ScamacNetwork, name: str
) -> None:
    select = SELECTIONS[name]
    rows = select(source, network, 50, 0, "landmarks")
    assert len(rows) == 50
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, select(source, network, 50, 0, "landmarks"))
    assert not np.array_equal(rows, select(source, network, 50, 1, "landmarks"))
    np.testing.assert_array_equal(select(source, network, N, 0, "landmarks"), np.arange(N))


def n_rare(rows: Iterable[int]) -> int:
    return sum(row >= N - N_RARE for row in rows)


@pytest.mark.slow
def test_kmeans_meets_the_rare_kind_in_every_seed_and_random_cells_do_not(
    source: ArraySource, network: ScamacNetwork
) -> None:
    found = {
        name: [n_rare(select(source, network, 100, seed, "landmarks")) for seed in range(10)]
        for name, select in SELECTIONS.items()
    }
    assert min(found["kmeans"]) >= 1
    assert min(found["random"]) == 0


def test_kmeans_by_faiss_finds_separate_groups() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 20)
    points = (10 * rng.normal(size=(30, 5))[groups] + rng.normal(size=(600, 5))).astype(np.float32)
    found = faiss_kmeans(points, 30, 0, n_runs=5).index.search(points, 1)[1].ravel()
    pairs = (groups[:, None] == groups[None]) == (found[:, None] == found[None])
    assert pairs.mean() > 0.99


def test_without_faiss_the_extra_is_named_where_the_bank_needs_it_and_landmarks_need_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # import then fails as if it were not installed
    config = ScamacConfig()
    check_settings(replace(config, start=replace(config.start, landmark_choice="kmeans")))
    with pytest.raises(MissingExtraError, match=r"scamac-scale\[cpu\]"):
        check_settings(replace(config, model=replace(config.model, bank_choice="kmeans")))


def test_a_consensus_of_too_many_landmarks_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"n_clusters=1001 .*10010 landmarks.*faiss_kmeans.*membership"):
        check_size(20_000, ScamacConfig(n_clusters=1001))
    check_size(9_000, ScamacConfig(n_clusters=1001))
    config = ScamacConfig(n_clusters=1001)
    config = replace(
        config,
        start=replace(config.start, centers="faiss_kmeans"),
        loss=replace(config.loss, similarity_target="membership"),
    )
    check_size(20_000, config)
