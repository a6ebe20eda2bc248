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

    U U^T is then the weighted share of members in which two cells fall together, and every row has length 1.

    Parameters
    ----------
    table
        Cluster of each cell in each of the R members.
    weights
        (R,) how often each member counts.
    uu_square
        Where it is known.

    Attributes
    ----------
    uu_square
        () float64, squared Frobenius norm of U^T U over all cells.
    """

    def __init__(self, table: CodeTable, weights: FloatArray, uu_square: float | None = None) -> None:
        self.table = table
        self.weights = weights
        self._uu_square = uu_square
        shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self.offsets = np.concatenate([[0], np.cumsum(table.sizes)[:-1]])
        self.width = int(table.sizes.sum())
        self.values = torch.from_numpy(np.sqrt(shares)).float()
        self._shares = shares

    @cached_property
    def uu_square(self) -> torch.Tensor:
        """Counted once: the codes do not change."""
        if self._uu_square is None:
            self._uu_square = self.table.square_of_shares(self._shares, torch.get_num_threads())
        return torch.tensor(self._uu_square, dtype=torch.float64)

    def of(self, rows: IntArray, latent: torch.Tensor, clusters: Clusters | None) -> Codes:
        """(B, C) rows of unit length."""
        columns = torch.from_numpy(self.table.read(rows).astype(np.int64) + self.offsets).to(latent.device)
        return Codes(columns, self.values.to(latent.device), self.width)

    def to_plain(self) -> dict[str, Any]:
        """All but the table, which lies in its file; for `target_from_plain`."""
        return {
            "kind": "consensus",
            "sizes": torch.from_numpy(self.table.sizes),
            "weights": torch.from_numpy(np.asarray(self.weights, dtype=np.float64)),
            "uu_square": float(self.uu_square),
            "digest": self.table.known_digest,
        }

    def close(self) -> None:
        """Give the table back."""
        self.table.close()


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
    table = CodeTable(n_cells, plain["sizes"].numpy(), path)
    try:
        if table.n_bytes != path.stat().st_size:
            raise StoreError(f"{path} is not what was written; start a new run.")
        table.finish()
        table.known_digest = from_first(table.digest, world)
        if table.known_digest != plain["digest"]:
            raise StoreError(f"{path} is not what was written; start a new run.")
        return ConsensusTarget(table, plain["weights"].numpy(), plain["uu_square"])
    except BaseException:
        table.close()
        raise
