"""The labels of the landmarks, and which of them the settings ask for."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from scamac_scale.config import ModelConfig, PhaseConfig, ScamacConfig, StartConfig, TrainConfig
from scamac_scale.errors import NumericalError
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ranks.world import World
from scamac_scale.train.clusters import labels as module
from scamac_scale.train.clusters.code_table import CodeTable
from scamac_scale.train.clusters.labels import label_landmarks
from scamac_scale.train.clusters.landmarks import Groups, Landmarks
from scamac_scale.train.clusters.targets import ConsensusTarget, MembershipTarget

if TYPE_CHECKING:
    from pathlib import Path

G, D, M = 12, 4, 30
TERMS = ("reconstruction", "layers", "similarity", "clustering")
CONFIG = ScamacConfig(
    n_clusters=3,
    model=ModelConfig(encoder_width=8, latent_width=D, bank_cells=3),
    start=StartConfig(components=(3,)),
    train=TrainConfig(phases=(PhaseConfig(terms=TERMS),)),
)


@pytest.fixture
def network() -> ScamacNetwork:
    torch.manual_seed(0)
    return ScamacNetwork(G, CONFIG.model, CONFIG.input).eval()


def groups(path: Path | None = None) -> Groups:
    """30 landmarks in three groups, and an empty center before the last of them."""
    rng = np.random.default_rng(0)
    x = 4.0 * rng.normal(size=(3, G))[np.arange(M) % 3] + 0.3 * rng.normal(size=(M, G))
    weights = np.arange(M) % 5 + 1
    numbers = np.append(np.arange(M - 1), M)
    table = CodeTable(int(weights.sum()), M + 1, path)
    table.write(np.arange(weights.sum()), np.repeat(numbers, weights))
    landmarks = Landmarks(torch.from_numpy(x.astype(np.float32)), weights)
    unit = torch.zeros(M + 1, D, dtype=torch.float64)
    unit[numbers] = torch.from_numpy(rng.normal(size=(M, D)))
    return Groups(landmarks, numbers, table, unit, torch.eye(D, dtype=torch.float64))


def test_labels_and_tree_are_of_the_consensus_and_every_cell_has_the_codes_of_its_landmark(
    network: ScamacNetwork,
) -> None:
    found = groups()
    target, pairs = label_landmarks(found, network, CONFIG, World())
    landmarks = found.landmarks
    assert landmarks.tree is not None
    np.testing.assert_array_equal(landmarks.labels, landmarks.tree.labels(3))
    assert len(set(zip(landmarks.labels.tolist(), (np.arange(M) % 3).tolist(), strict=True))) == 3
    assert isinstance(target, ConsensusTarget)
    assert target.codes.shape[0] == M + 1
    assert target.counts[M - 1] == 0
    np.testing.assert_array_equal(target.counts[found.numbers], landmarks.weights)
    assert pairs is not None
    n_cells = landmarks.weights.sum()
    torch.testing.assert_close(pairs.uz, target.product(found.unit) / n_cells)
    torch.testing.assert_close(pairs.zz, found.zz / n_cells)


OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "memberships": {"loss": {"similarity_target": "membership"}},
    "off": {"loss": {"similarity": "off"}},
    "no step has it": {"train": {"phases": (PhaseConfig(terms=("reconstruction",)),)}},
    "pairs of a batch": {"loss": {"similarity": "batch"}},
    "other centers": {"start": {"centers": "ward"}},
    "other centers, no members": {"start": {"centers": "ward"}, "loss": {"similarity_target": "membership"}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_only_what_the_settings_ask_for_is_found(network: ScamacNetwork, name: str, tmp_path: Path) -> None:
    config = replace(
        CONFIG, **{part: replace(getattr(CONFIG, part), **values) for part, values in OTHERS[name].items()}
    )
    found = groups(tmp_path / "codes")
    target, pairs = label_landmarks(found, network, config, World())
    assert (found.landmarks.tree is None) == name.startswith("other centers")
    assert len(set(found.landmarks.labels.tolist())) == 3
    kind = {"memberships": MembershipTarget, "other centers, no members": MembershipTarget, "off": type(None)}
    assert type(target) is kind.get(name, type(None) if name == "no step has it" else ConsensusTarget)
    assert (pairs is None) == (name != "other centers")
    if target is not None:
        target.close()


def test_landmarks_that_are_alike_make_fewer_clusters_and_it_is_said(
    network: ScamacNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    found = groups()
    found.landmarks.x[:] = found.landmarks.x[:1]
    config = replace(CONFIG, start=replace(CONFIG.start, centers="random"), loss=replace(CONFIG.loss, similarity="off"))
    with caplog.at_level(logging.WARNING):
        label_landmarks(found, network, config, World())
    assert "fall into 1 clusters, not 3" in caplog.text


def test_the_table_is_closed_where_no_labels_are_found(
    network: ScamacNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NumericalError("no labels")

    monkeypatch.setattr(module, "find_consensus", fail)
    found, closed = groups(tmp_path / "codes"), []
    monkeypatch.setattr(found.table, "close", lambda: (closed.append(True), CodeTable.close(found.table)))
    with pytest.raises(NumericalError, match="no labels"):
        label_landmarks(found, network, CONFIG, World())
    assert closed == [True]
