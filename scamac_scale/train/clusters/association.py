"""What clusterings of the same landmarks have in common: the share that put two of them together, and its tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.host.compiled import compiled
from scamac_scale.ops.linkage import weighted_linkage
from scamac_scale.ops.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.cells.arrays import FloatArray, IntArray


@dataclass(frozen=True)
class Member:
    """One clustering of the landmarks.

    Attributes
    ----------
    space
        Index into the list of spaces.
    method
        ``leiden`` or a key of `METHODS`.
    labels
        (M,) cluster of each landmark, 0 to `n_clusters` - 1.
    weight
        How many times it counts.
    """

    space: int
    method: str
    labels: IntArray
    weight: float

    @property
    def n_clusters(self) -> int:
        """Clusters of this member."""
        return int(self.labels.max()) + 1


def co_association(members: Sequence[Member]) -> FloatArray:
    """Weighted share of members in which two landmarks fall together; (M, M) float32, ones on the diagonal."""
    codes = np.stack([member.labels for member in members], axis=1).astype(np.int32)
    weights = np.array([member.weight for member in members], dtype=np.float32)
    shared: FloatArray = _shared(codes, weights)
    shared /= weights.sum()
    return shared


@compiled
def _shared(codes: Any, weights: Any) -> Any:  # Any: numba's arrays are not typed
    """(M, M) sum of the weights of the members in which two landmarks have one code."""
    n_points, n_members = codes.shape
    shared = np.empty((n_points, n_points), dtype=np.float32)
    for i in range(n_points):
        for j in range(i + 1):
            found = np.float32(0.0)
            for r in range(n_members):
                if codes[i, r] == codes[j, r]:
                    found += weights[r]
            shared[i, j] = found
            shared[j, i] = found
    return shared


def consensus_tree(members: Sequence[Member], weights: FloatArray | None = None) -> Tree:
    """Average-linkage tree of the landmarks by 1 - co-association.

    Parameters
    ----------
    members
        Of M landmarks.
    weights
        (M,) cells that each landmark stands for; None takes ones.

    Returns
    -------
    Tree
        Cut it at a number of clusters, or at a height between 0 (those that all members put together) and 1.
    """
    apart = co_association(members)
    np.subtract(1.0, apart, out=apart)
    sizes = np.ones(len(apart)) if weights is None else np.array(weights, dtype=np.float64)
    return Tree(weighted_linkage(apart, sizes, "average", overwrite=True), sizes)
