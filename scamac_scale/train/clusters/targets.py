"""U of Eq. (15): the memberships whose similarity between cells the latent shall have."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scamac_scale.errors import StoreError
from scamac_scale.ops.similarity import Codes
from scamac_scale.ranks.collectives import from_first
from scamac_scale.train.clusters.code_table import CodeTable

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.config import LossConfig, TrainConfig
    from scamac_scale.ops.fuzzy import Clusters
    from scamac_scale.ranks.world import World


def has_similarity(loss: LossConfig, train: TrainConfig) -> bool:
    """Tell whether any step has Eq. (15)."""
    return loss.similarity != "off" and any("similarity" in phase.terms for phase in train.phases)


class MembershipTarget:
    """U of Eq. (15) as printed: memberships of the batch in the current clusters, held constant."""

    uu_square = None

    def of(self, rows: IntArray, latent: torch.Tensor, clusters: Clusters) -> torch.Tensor:
        """(B, K) memberships."""
        return clusters.assign(latent.detach())[0]

    def to_plain(self) -> dict[str, Any]:
        """Nothing but what it is."""
        return {"kind": "membership"}

    def close(self) -> None:
        """Nothing to give back."""


class ConsensusTarget:
    """U of Eq. (15) from many clusterings: stacked one-hot memberships of the consensus members.

    A cell has those of its landmark. U U^T is then the weighted share of members in which two cells fall together, and every row has
    length 1.

    Parameters
    ----------
    table
        Landmark of each cell.
    codes
        (M, R) cluster of each landmark in each of the R members.
    weights
        (R,) how often each member counts.
    counts
        (M,) cells of each landmark.

    Attributes
    ----------
    uu_square
        () float64, squared Frobenius norm of U^T U over all cells.
    """

    def __init__(self, table: CodeTable, codes: IntArray, weights: FloatArray, counts: IntArray) -> None:
        self.table, self.codes, self.counts = table, codes, counts
        self.weights = np.asarray(weights, dtype=np.float64)
        sizes = codes.max(axis=0) + 1
        self._columns = codes + np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.width = int(sizes.sum())
        self._shares = self.weights / self.weights.sum()
        self.values = torch.from_numpy(np.sqrt(self._shares)).float()

    @cached_property
    def uu_square(self) -> torch.Tensor:
        """Counted once: the codes do not change."""
        return torch.tensor(square_of_codes(self.codes, self._shares, self.counts), dtype=torch.float64)

    def of(self, rows: IntArray, latent: torch.Tensor, clusters: Clusters | None) -> Codes:
        """(B, C) rows of unit length."""
        columns = torch.from_numpy(self._columns[self.table.read(rows)]).to(latent.device)
        return Codes(columns, self.values.to(latent.device), self.width)

    def product(self, unit: torch.Tensor) -> torch.Tensor:
        """(C, D) float64 sum over all cells of u z^T, from the (M, D) sums of the latents at unit length of each landmark's cells."""
        found = torch.zeros(self.width, unit.shape[1], dtype=torch.float64)
        for column, share in zip(self._columns.T, self._shares, strict=True):
            found.index_add_(0, torch.from_numpy(column), unit, alpha=float(np.sqrt(share)))
        return found

    def to_plain(self) -> dict[str, Any]:
        """All but the table, which lies in its file; for `target_from_plain`."""
        return {
            "kind": "consensus",
            "codes": torch.from_numpy(self.codes),
            "weights": torch.from_numpy(self.weights),
            "counts": torch.from_numpy(self.counts),
            "digest": self.table.known_digest,
        }

    def close(self) -> None:
        """Give the table back."""
        self.table.close()


def square_of_codes(codes: IntArray, shares: FloatArray, counts: IntArray) -> float:
    """Sum over all ordered pairs of cells of the squared share of members in which the two have the same code.

    Parameters
    ----------
    codes
        (M, R) of the landmarks.
    shares
        (R,) weights of the members, of sum 1.
    counts
        (M,) cells of each landmark.

    Returns
    -------
    float
        ||U^T U||^2 of Eq. (15) for the stacked one-hot codes, each column times the root of its share.

    Notes
    -----
    O(M R^2 / 2): for each two members the table of how many cells have which two codes, whole numbers. The square of an entry counts
    with the product of the two shares.
    """
    total = 0.0
    sizes = codes.max(axis=0) + 1
    for left in range(codes.shape[1]):
        for right in range(left, codes.shape[1]):
            both = codes[:, left] * sizes[right] + codes[:, right]
            table = np.bincount(both, weights=counts)  # whole numbers below 2^53
            total += float(np.square(table).sum()) * shares[left] * shares[right] * (1.0 if left == right else 2.0)
    return total


Target = MembershipTarget | ConsensusTarget
"""U of Eq. (15): the stacked memberships of the consensus members, or the memberships of the clusters, as printed."""


def target_from_plain(plain: dict[str, Any], n_cells: int, path: Path, world: World) -> Target:
    """Make the target that its ``to_plain`` described.

    Parameters
    ----------
    plain
        The description.
    n_cells
        N.
    path
        File of the table.
    world
        This rank, and how many there are.

    Raises
    ------
    StoreError
        If the file is missing, or is not what was written.
    """
    if plain["kind"] == "membership":
        return MembershipTarget()
    if not path.exists():
        raise StoreError(f"{path} is missing, without which the run cannot go on; start a new run.")
    codes, weights, counts = (plain[name].numpy() for name in ("codes", "weights", "counts"))
    _check_codes(codes, weights, counts, n_cells)
    table = CodeTable(n_cells, len(codes), path)
    try:
        if table.n_bytes != path.stat().st_size:
            raise StoreError(f"{path} is not what was written; start a new run.")
        table.finish()
        table.known_digest = from_first(table.digest, world)
        if table.known_digest != plain["digest"]:
            raise StoreError(f"{path} is not what was written; start a new run.")
        return ConsensusTarget(table, codes, weights, counts)
    except BaseException:
        table.close()
        raise


def _check_codes(codes: IntArray, weights: FloatArray, counts: IntArray, n_cells: int) -> None:
    """Refuse what no consensus leaves, ValueError: kernels that take codes for places do not look."""
    shape = codes.shape
    is_whole = codes.dtype == counts.dtype == np.int64 and len(shape) == 2 and shape == (len(counts), len(weights))
    is_whole = is_whole and bool(codes.size) and 0 <= int(codes.min()) <= int(codes.max()) < len(codes)
    is_sound = is_whole and weights.dtype == np.float64 and bool(np.isfinite(weights).all() and (weights > 0).all())
    if not is_sound or counts.min() < 0 or int(counts.sum()) != n_cells:
        raise ValueError("the codes of the landmarks are of no consensus")
