"""The landmark cells: their labels, the target of Eq. (15) that follows from them, and the centers that they give."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.faults import reach
from scamac_scale.errors import StoreError
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.loader.source import levels_of
from scamac_scale.nn.embed import embed_rows
from scamac_scale.randomness import integer_seed
from scamac_scale.ranks.collectives import agree, barrier, from_first
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.sweep import SWEEP_CELLS, InFlight, sweep
from scamac_scale.train.clusters.centers import CENTER_STARTS
from scamac_scale.train.clusters.code_table import CodeTable
from scamac_scale.train.clusters.consensus import Consensus, MemberAssigner, find_consensus
from scamac_scale.train.clusters.targets import ConsensusTarget, MembershipTarget, Target, has_similarity
from scamac_scale.train.run.watch import Watch

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.config import ScamacConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.loader.source import CellSource
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.train.clusters.selection import Landmarks

logger = logging.getLogger(__name__)


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
    landmarks.labels, found = from_first(lambda: _find_labels(landmarks, network, config), world)
    consensus = None if found is None else Consensus.from_plain(found)
    reach("train.consensus")
    if not has_similarity(config.loss, config.train):
        return None
    if config.loss.similarity_target == "membership":
        return MembershipTarget()
    assert consensus is not None
    return _consensus_target(landmarks, consensus, network, source, path, watch or Watch(config.train), world)


def _find_labels(
    landmarks: Landmarks, network: ScamacNetwork, config: ScamacConfig
) -> tuple[IntArray, dict[str, Any] | None]:
    """Labels of the landmarks, and the consensus, as plain data, where it is needed."""
    latent = embed_rows(network, landmarks.x).double().cpu().numpy()
    needs_members = config.loss.similarity_target == "consensus" and has_similarity(config.loss, config.train)
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
    return labels, None if consensus is None else consensus.to_plain()


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
    digest = sha256_of(labels.astype(np.int64))

    @torch.no_grad()
    def assign(done: int, batch: Batch) -> int:
        x = network.cell_input(batch.values.to(device), levels_of(source, batch.rows))
        table.write(batch.rows, assigner.assign({"input": x, "latent": network.embed(x)}).cpu().numpy())
        reach("train.members")
        return done + len(batch.rows)

    plan = SweepPlan(source.n_cells, SWEEP_CELLS, world)
    first, stop = plan.bounds

    def so_far(turns: int, done: int) -> InFlight:
        table.flush()
        return {"turns": turns, "done": done, "members": digest, "codes": table.digest(first, min(first + done, stop))}

    def is_as_left(in_flight: InFlight) -> bool:
        """Tell whether the members and the codes on disk are those of before: other hardware may find others, and a disk may lose some."""
        if "done" not in in_flight or not table.is_whole():
            return False
        try:
            return so_far(in_flight["turns"], in_flight["done"]) == in_flight
        except StoreError:  # codes that no member has
            return False

    with watch.sweep("members") as (in_flight, tick):
        is_new = agree([in_flight is None or not is_as_left(in_flight)], world)[0]  # ranks take turns together
        turns, start = (0, 0) if in_flight is None or is_new else (in_flight["turns"], in_flight["done"])

        def look(turn: int, done: int) -> None:
            tick(lambda: so_far(turn, done))

        sweep(source, assign, start, label="members", plan=plan, turns=turns, tick=look)
    barrier(world)  # the clusters of the landmarks are written over what others wrote
    if world.rank == 0:
        table.write(landmarks.rows, labels)
        table.cut()
    table.flush()
    barrier(world)  # all have written
    table.finish()
    table.known_digest = from_first(table.digest, world) if path else ""
    target = ConsensusTarget(table, np.array([member.weight for member in members]))
    return ConsensusTarget(table, target.weights, from_first(lambda: float(target.uu_square), world))
