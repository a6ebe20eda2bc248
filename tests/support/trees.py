"""Trees over a few landmarks."""

import numpy as np

from scamac_scale.ops.linkage import weighted_linkage
from scamac_scale.ops.tree import Tree


def some_tree(n: int = 40, seed: int = 0) -> Tree:
    """A tree of 1 - the share of twelve random clusterings that put two landmarks together, with unequal weights."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n) % 4
    codes = np.where(rng.random((n, 12)) < 0.3, rng.integers(0, 6, (n, 12)), groups[:, None])
    apart = (codes[:, None] != codes[None]).mean(axis=2)
    weights = rng.integers(1, 20, n).astype(np.float64)
    return Tree(weighted_linkage(apart, weights, "average"), weights)
