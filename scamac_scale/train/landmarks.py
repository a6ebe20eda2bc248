"""The landmark cells: their labels, the target of Eq. (15) that follows from them, and the centers that they give."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import torch

from scamac_scale.durable.faults import reach
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.nn.embed import embed_rows
from scamac_scale.randomness import integer_seed
from scamac_scale.reduce import barrier, from_first
from scamac_scale.sweep import SWEEP_CELLS, InFlight, sweep
from scamac_scale.train.centers import CENTER_STARTS
from scamac_scale.train.codes import CodeTable
from scamac_scale.train.consensus import Consensus, MemberAssigner, find_consensus
from scamac_scale.train.selection import SELECTIONS, landmark_count, read_cells
from scamac_scale.train.targets import ConsensusTarget, MembershipTarget, Target, has_similarity
from scamac_scale.train.watch import Watch
from scamac_scale.world import ALONE, World

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.arrays import IntArray
    from scamac_scale.config import ScamacConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork

logger = logging.getLogger(__name__)


@dataclass
class Landmarks:
    """The sample of cells on which the centers are found.

    Attributes
    ----------
    rows
        (M,) rows of the atlas.
    x
        (M, G) scaled input.
    labels
        (M,) cluster of each, once found.
    """

    rows: IntArray
    x: torch.Tensor
    labels: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def to_plain(self) -> list[torch.Tensor]:
        """Rows and labels; the cells are read again."""
        return [torch.from_numpy(self.rows), torch.from_numpy(self.labels)]

    @classmethod
    def from_plain(cls, plain: list[torch.Tensor], source: CellSource, network: ScamacNetwork) -> Landmarks:
        """Make the landmarks that `to_plain` gave, of the same source and with the same input scale."""
        rows, labels = (part.numpy() for part in plain)
        return cls(rows, read_cells(source, rows, network), labels)


def choose_landmarks(
    source: CellSource,
    network: ScamacNetwork,
    config: ScamacConfig,
    world: World = ALONE,
) -> Landmarks:
    """Choose the landmarks as the config says, on rank 0, and read them."""
    select = SELECTIONS[config.start.landmark_choice]
    n_landmarks = landmark_count(source.n_cells, config.start, config.n_clusters)
    rows = from_first(lambda: select(source, network, n_landmarks, config.seed, "landmarks"), world)
    return Landmarks(rows, read_cells(source, rows, network))


def label_landmarks(
    landmarks: Landmarks,
    network: ScamacNetwork,
    source: CellSource,
    config: ScamacConfig,
    *,
    path: Path | None = None,
    watch: Watch | None = None,
    world: World = ALONE,
) -> Target | None:
    """Label the landmarks and make the target of Eq. (15).

    Parameters
    ----------
    landmarks
        Get their labels.
    network, source, config
        Of the fit.
    path
        File for the clusters of all cells in all members; None takes one without a name, where it is needed.
    watch
        Asked now and then; None goes on.
    world
        This rank, and how many there are: rank 0 finds the labels, all assign their cells.

    Returns
    -------
    Target or None
        None where no step has Eq. (15).
    """
    landmarks.labels, consensus = from_first(lambda: _find_labels(landmarks, network, config), world)
    reach("train.consensus")
    if not has_similarity(config):
        return None
    if config.loss.similarity_target == "membership":
        return MembershipTarget()
    assert consensus is not None
    return _consensus_target(landmarks, consensus, network, source, path, watch or Watch(config.train), world)


def _find_labels(
    landmarks: Landmarks, network: ScamacNetwork, config: ScamacConfig
) -> tuple[IntArray, Consensus | None]:
    """Labels of the landmarks, and the consensus where it is needed."""
    latent = embed_rows(network, landmarks.x).double().cpu().numpy()
    needs_members = config.loss.similarity_target == "consensus" and has_similarity(config)
    start = CENTER_STARTS[config.start.centers]
    consensus, labels = None, landmarks.labels
    if start is None or needs_members:
        sources = {"input": landmarks.x.double().cpu().numpy(), "latent": latent}
        known = config.n_clusters if isinstance(config.n_clusters, int) else None
        consensus = find_consensus(
            sources,
            known,
            components=config.start.components,
            cut_height=config.start.cut_height,
            seed=integer_seed(config.seed, "consensus"),
        )
        labels = consensus.labels
    if start is not None:
        assert isinstance(config.n_clusters, int)
        labels = np.unique(start(latent, config.n_clusters, config.seed), return_inverse=True)[1]
        found = int(labels.max()) + 1
        if found < config.n_clusters:
            logger.warning("the landmark cells fall into %d clusters, not %d: too few differ", found, config.n_clusters)
    return labels, consensus


def _consensus_target(
    landmarks: Landmarks,
    consensus: Consensus,
    network: ScamacNetwork,
    source: CellSource,
    path: Path | None,
    watch: Watch,
    world: World,
) -> ConsensusTarget:
    """Clusters of every cell in every member, by the nearest center; the landmarks keep their own."""
    device = network.gene_mean.device
    sources = {"input": landmarks.x.numpy(), "latent": embed_rows(network, landmarks.x).cpu().numpy()}
    assigner = MemberAssigner(consensus, sources, device)
    members = consensus.members
    table = CodeTable(source.n_cells, np.array([member.n_clusters for member in members]), path)
    labels = np.stack([member.labels for member in members], axis=1)
    digest = sha256(labels.astype(np.int64).tobytes()).hexdigest()

    @torch.no_grad()
    def assign(done: int, batch: Batch) -> int:
        x = network.scale_input(batch.values.to(device))
        table.write(batch.rows, assigner.assign({"input": x, "latent": network.embed(x)}).cpu().numpy())
        reach("train.members")
        return done + len(batch.rows)

    def so_far(turns: int) -> InFlight:
        table.flush()
        return {"turns": turns, "members": digest}

    plan = SweepPlan(source.n_cells, SWEEP_CELLS, world)
    with watch.sweep("members") as (in_flight, tick):
        is_same = in_flight is not None and in_flight.get("members") == digest  # other hardware may find other members
        turns = in_flight["turns"] if in_flight and is_same else 0

        def look(turn: int, done: int) -> None:
            tick(lambda: so_far(turn))

        sweep(source, assign, 0, label="members", plan=plan, turns=turns, tick=look)
    barrier(world)  # the clusters of the landmarks are written over what others wrote
    if world.rank == 0:
        table.write(landmarks.rows, labels)
    table.flush()
    barrier(world)  # all have written
    table.finish()
    table.known_digest = from_first(table.digest, world) if path else ""
    target = ConsensusTarget(table, np.array([member.weight for member in members]))
    return ConsensusTarget(table, target.weights, from_first(lambda: float(target.uu_square), world))
