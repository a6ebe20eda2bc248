"""The labels of the landmarks, and what follows from them for all cells: the target of Eq. (15) and its first sums."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.durable.faults import reach
from scamac_scale.nn.embed import embed_rows
from scamac_scale.ops.similarity import PairMeans
from scamac_scale.randomness import integer_seed
from scamac_scale.ranks.collectives import from_first
from scamac_scale.train.clusters.centers import CENTER_STARTS
from scamac_scale.train.clusters.consensus import Consensus, find_consensus
from scamac_scale.train.clusters.targets import ConsensusTarget, MembershipTarget, Target, has_similarity

if TYPE_CHECKING:
    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.config import ScamacConfig
    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.ranks.world import World
    from scamac_scale.train.clusters.landmarks import Groups, Landmarks

logger = logging.getLogger(__name__)


class Aim(NamedTuple):
    """What the steps of the rounds aim at.

    Attributes
    ----------
    target
        U of Eq. (15); None where no step has it.
    pairs
        What Eq. (15) needs of all cells; None where it is not known yet.
    """

    target: Target | None
    pairs: PairMeans | None


def label_landmarks(groups: Groups, network: ScamacNetwork, config: ScamacConfig, world: World) -> Aim:
    """Label the landmarks, on rank 0, and make the target of Eq. (15).

    Parameters
    ----------
    groups
        Their landmarks get labels; their table goes to the target, or is closed.
    network, config
        Of the fit.
    world
        This rank, and how many there are.

    Returns
    -------
    Aim
        The same on all ranks.
    """
    try:
        return _aim(groups, network, config, world)
    except BaseException:
        groups.table.close()
        raise


def _aim(groups: Groups, network: ScamacNetwork, config: ScamacConfig, world: World) -> Aim:
    landmarks = groups.landmarks
    landmarks.labels, found = from_first(lambda: _find_labels(landmarks, network, config), world)
    consensus = None if found is None else Consensus.from_plain(found)
    if consensus is not None and CENTER_STARTS[config.start.centers] is None:
        landmarks.tree, landmarks.counted = consensus.tree, consensus.counted
    reach("train.consensus")
    if not has_similarity(config.loss, config.train) or config.loss.similarity_target == "membership":
        groups.table.close()
        return Aim(MembershipTarget() if has_similarity(config.loss, config.train) else None, None)
    assert consensus is not None
    members = consensus.members
    codes = np.zeros((groups.table.n_codes, len(members)), dtype=np.int64)
    counts = np.zeros(groups.table.n_codes, dtype=np.int64)
    codes[groups.numbers] = np.stack([member.labels for member in members], axis=1)
    np.add.at(counts, groups.numbers, landmarks.weights)  # a center may have several landmarks, which are alike
    target = ConsensusTarget(groups.table, codes, np.array([member.weight for member in members]), counts)
    if config.loss.similarity != "atlas":
        return Aim(target, None)
    n_cells, device = float(landmarks.weights.sum()), groups.zz.device
    uz = target.product(groups.unit) / n_cells
    return Aim(target, PairMeans(groups.zz / n_cells, uz.to(device), target.uu_square.to(device) / n_cells**2))


def _find_labels(
    landmarks: Landmarks, network: ScamacNetwork, config: ScamacConfig
) -> tuple[IntArray, dict[str, Any] | None]:
    """Labels of the landmarks, and the consensus, as plain data, where it is needed."""
    latent = embed_rows(network, landmarks.x).double().cpu().numpy()
    weights = landmarks.weights.astype(np.float64)
    needs_members = config.loss.similarity_target == "consensus" and has_similarity(config.loss, config.train)
    start = CENTER_STARTS[config.start.centers]
    consensus, labels = None, landmarks.labels
    if start is None or needs_members:
        known = config.n_clusters if isinstance(config.n_clusters, int) else None
        consensus = find_consensus(
            {"input": landmarks.x.numpy(), "latent": latent},
            weights,
            known,
            components=config.start.components,
            cut_height=config.start.cut_height,
            seed=integer_seed(config.seed, "consensus"),
            finds_rare=config.start.finds_rare,
        )
        labels = consensus.labels
    if start is not None:
        assert isinstance(config.n_clusters, int)
        labels = np.unique(start(latent, weights, config.n_clusters, config.seed), return_inverse=True)[1]
        found = int(labels.max()) + 1
        if found < config.n_clusters:
            logger.warning("the landmarks fall into %d clusters, not %d: too few differ", found, config.n_clusters)
    return labels, None if consensus is None else consensus.to_plain()
