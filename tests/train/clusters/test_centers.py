from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from scamac_scale.config import ModelConfig, ScamacConfig
from scamac_scale.nn.embed import embed_rows
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ops.fuzzy import Clusters
from scamac_scale.train.clusters.centers import CENTER_STARTS, empty_clusters, landmark_clusters, tend_clusters
from scamac_scale.train.clusters.landmarks import Landmarks

G, D = 12, 4
CONFIG = ScamacConfig(model=ModelConfig(encoder_width=8, latent_width=D, bank_cells=3))


@pytest.fixture
def network() -> ScamacNetwork:
    torch.manual_seed(0)
    return ScamacNetwork(G, CONFIG.model, CONFIG.input).eval()


def state(network: ScamacNetwork) -> tuple[Landmarks, Clusters]:
    """60 cells in two groups with one center each, and a third center far away from all."""
    generator = torch.Generator().manual_seed(1)
    groups = torch.randn(2, G, generator=generator).repeat_interleave(torch.tensor([40, 20]), dim=0)
    x = 4 * groups + 0.3 * torch.randn(60, G, generator=generator)
    x[:20] += 2.0  # two halves in the larger group
    latent = embed_rows(network, x)
    centers = torch.stack([latent[:40].mean(dim=0), latent[40:].mean(dim=0), latent.mean(dim=0) + 1000])
    weight = torch.tensor([40.0, 20.0, 1e-9], dtype=torch.float64)
    return Landmarks(x, np.ones(60, dtype=np.int64)), Clusters(centers, 0.5, 0.01, weight)


def test_a_cluster_without_weight_is_reported_and_keeps_its_center(
    network: ScamacNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    landmarks, clusters = state(network)
    assert empty_clusters(clusters) == [2]
    with caplog.at_level(logging.WARNING):
        found = tend_clusters(clusters, landmarks, network, splits_heaviest=False, seed=0)
    assert found is clusters
    assert "1 of 3 clusters are empty (2)" in caplog.text


def test_full_clusters_are_left_alone_without_a_word(network: ScamacNetwork, caplog: pytest.LogCaptureFixture) -> None:
    landmarks, clusters = state(network)
    full = replace(clusters, weight=torch.ones(3, dtype=torch.float64))
    assert tend_clusters(full, landmarks, network, splits_heaviest=False, seed=0) is full
    assert (
        tend_clusters(replace(clusters, weight=None), landmarks, network, splits_heaviest=False, seed=0).weight is None
    )
    assert caplog.text == ""


def test_the_heaviest_cluster_is_split_on_request(network: ScamacNetwork, caplog: pytest.LogCaptureFixture) -> None:
    landmarks, clusters = state(network)
    found = tend_clusters(clusters, landmarks, network, splits_heaviest=True, seed=0)
    latent = embed_rows(network, landmarks.x)
    halves = torch.stack([latent[:20].mean(dim=0), latent[20:40].mean(dim=0)])
    distance = torch.cdist(halves, found.centers[[0, 2]])
    torch.testing.assert_close(distance.amin(dim=1), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.centers[1], clusters.centers[1], rtol=0, atol=0)
    assert "1 clusters were empty (2); heavy ones were split in place of 1 of them" in caplog.text
    assert empty_clusters(found) == []
    again = tend_clusters(clusters, landmarks, network, splits_heaviest=True, seed=0)
    torch.testing.assert_close(again.centers, found.centers, rtol=0, atol=0)


def test_landmarks_that_cannot_be_split_leave_the_clusters_as_they_are(
    network: ScamacNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    landmarks, clusters = state(network)
    same = Landmarks(landmarks.x[:1].expand(60, -1).contiguous(), landmarks.weights)
    assert tend_clusters(clusters, same, network, splits_heaviest=True, seed=0) is clusters
    assert "in place of 0 of them" in caplog.text


def test_centers_and_halves_of_landmarks_are_those_of_their_cells(network: ScamacNetwork) -> None:
    landmarks, clusters = state(network)
    landmarks.labels = np.repeat([0, 1], [40, 20])
    landmarks.weights = np.arange(60) % 4 + 1
    cells = Landmarks(
        torch.from_numpy(np.repeat(landmarks.x.numpy(), landmarks.weights, axis=0)),
        np.ones(landmarks.weights.sum(), dtype=np.int64),
        np.repeat(landmarks.labels, landmarks.weights),
    )
    ours, theirs = (landmark_clusters(one, network, CONFIG.loss) for one in (landmarks, cells))
    torch.testing.assert_close(ours.centers, theirs.centers, rtol=1e-5, atol=1e-5)
    ours, theirs = (tend_clusters(clusters, one, network, splits_heaviest=True, seed=0) for one in (landmarks, cells))
    for found, expected in zip((ours.centers, ours.weight), (theirs.centers, theirs.weight), strict=True):
        # either half may take the place of the empty cluster
        torch.testing.assert_close(found.sort(dim=0).values, expected.sort(dim=0).values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, start in CENTER_STARTS.items() if start is not None])
def test_a_landmark_that_stands_for_many_draws_the_centers(name: str) -> None:
    start = CENTER_STARTS[name]
    assert start is not None
    latent = np.repeat(np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0], [9.0, 1.1]]), 3, axis=0)
    latent += 1e-3 * np.random.default_rng(0).normal(size=latent.shape)
    weights = np.repeat([1000.0, 1000.0, 1.0, 1.0], 3)
    if name == "random":  # landmarks are drawn by their weights
        first = {int(label) for seed in range(20) for label in start(latent, weights, 2, seed)[6:]}
        assert len(first) == 2
        drawn = [len(set(start(latent, weights, 2, seed)[6:])) for seed in range(20)]
        assert drawn == [1] * 20  # no center among the light ones
        return
    labels = start(latent, weights, 3, 0)
    assert len(set(labels)) == 3
    assert labels[0] != labels[3]
    assert len(set(labels[6:])) == 1  # the two light ones together
