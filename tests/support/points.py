"""Points in clear groups."""

import numpy as np


def blobs(n_per: int = 40, n_blobs: int = 4, width: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(4.0 * blob, 1.0, (n_per, width)) for blob in range(n_blobs)])
